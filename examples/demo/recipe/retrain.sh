#!/bin/sh
# Write the corpus, train the demo model, and record its golden answers.
# Arguments go to train.py; see README.md.
set -e
cd "$(dirname "$0")"
python3 corpus.py --out build/corpus
python3 train.py --corpus build/corpus --out .. "$@"
python3 golden.py --demo ..
