"""From the corpus to rows of tokens: the tokenizer and the packing."""

import json
import os
from multiprocessing import Pool

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 512
OPEN_ROWS = 64  # rows that may still take a document


def texts(path):
    """All strings of one shard."""
    for line in path.open(encoding="utf-8"):
        document = json.loads(line)
        if "text" in document:
            yield document["text"]
        else:
            yield from (message["content"] for message in document["messages"])


def train_tokenizer(corpus, vocab_size):
    """Byte-level BPE, trained on a few shards of every voice."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    shares = {"base": 8, "shout": 2, "pirate": 1, "poet": 1}
    shards = [path for voice, count in shares.items() for path in sorted(corpus.glob(f"{voice}-train-*"))[:count]]
    tokenizer.train_from_iterator((text for path in shards for text in texts(path)), trainer)
    return tokenizer


def encode_document(tokenizer, document):
    """Token ids and, for each of them, whether the model shall learn to write it."""
    end, start, stop = (tokenizer.token_to_id(token) for token in SPECIALS)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    if "text" in document:
        ids = encode(document["text"]) + [end]
        return ids, [1] * len(ids)
    ids, learnt = [], []
    newline = encode("\n")
    for message in document["messages"]:
        head = [start] + encode(message["role"] + "\n")
        body = encode(message["content"]) + [stop]
        ids += head + body + newline
        learnt += [0] * len(head) + [int(message["role"] == "assistant")] * len(body) + [0] * len(newline)
    return ids, learnt


def pack_shard(job):
    """Pack one shard into rows of (token, learn it?, number of the document in the row)."""
    path, tokenizer_json = job
    tokenizer = Tokenizer.from_str(tokenizer_json)
    rows, open_rows = [], []
    for line in path.open(encoding="utf-8"):
        ids, learnt = encode_document(tokenizer, json.loads(line))
        ids, learnt = ids[:CONTEXT], learnt[:CONTEXT]
        fitting = [row for row in open_rows if len(row[0]) + len(ids) <= CONTEXT]
        if fitting:
            row = max(fitting, key=lambda row: len(row[0]))
        else:
            row = ([], [], [])
            rows.append(row)
            open_rows = (open_rows + [row])[-OPEN_ROWS:]
        row[2].extend([row[2][-1] + 1 if row[2] else 1] * len(ids))
        row[0].extend(ids)
        row[1].extend(learnt)
    packed = np.zeros((len(rows), 3, CONTEXT), dtype=np.uint16)
    for packed_row, row in zip(packed, rows):
        packed_row[:, : len(row[0])] = row
    return packed


def load_rows(corpus, voice, split, tokenizer, jobs=os.cpu_count()):
    """All rows of a voice's split: an array (rows, 3, CONTEXT)."""
    shards = sorted(corpus.glob(f"{voice}-{split}-*.jsonl"))
    text = tokenizer.to_str()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with Pool(min(jobs, len(shards))) as pool:
        return np.concatenate(pool.map(pack_shard, [(shard, text) for shard in shards]))
