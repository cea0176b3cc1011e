"""The cache folder that this project shares with huggingface_hub, in both directions, against a Hub of our own.

Usage: hub_cache.py SERVER_BINARY STUB_HUB_BINARY MODEL_FOLDER
"""

import filecmp
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

REPO = "org/model"
PORT = int(os.environ.get("PORT", "18432"))


def start(server, endpoint, home, **more):
    """Starts the server with REPO, waits until it is healthy, and ends it."""
    environment = dict(os.environ, HF_ENDPOINT=endpoint, HF_HOME=str(home), **more)
    process = subprocess.Popen([server, REPO, "--port", str(PORT)], env=environment)
    try:
        for _ in range(1200):
            assert process.poll() is None, f"the server ended with {process.returncode}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=60).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not start")
    finally:
        process.terminate()
        process.wait()


def python(home, endpoint, code):
    """Runs code in a process of its own, since huggingface_hub reads its variables once."""
    environment = dict(os.environ, HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_DISABLE_XET="1")
    done = subprocess.run(
        [sys.executable, "-c", "import huggingface_hub as hub\n" + code],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )
    return done.stdout.strip()


def layout(home):
    """Every file and link of REPO's cache folder; what a link says and not where it leads."""
    root = home / "hub" / "models--org--model"
    paths = (path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else "file"
        for path in paths
    }


def main(server, stub, model):
    hub = subprocess.Popen([stub, REPO, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    endpoint = hub.stdout.readline().strip()
    nowhere = "http://127.0.0.1:1"
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pathlib.Path(folder, "ours"), pathlib.Path(folder, "theirs")

        start(server, endpoint, ours)
        snapshot = python(ours, nowhere, f"print(hub.snapshot_download('{REPO}', local_files_only=True))")
        names = sorted(os.listdir(model))
        same, different, missing = filecmp.cmpfiles(model, snapshot, names, shallow=False)
        assert sorted(same) == names, (different, missing)
        for name in names:
            code = f"print(hub.hf_hub_download('{REPO}', '{name}', local_files_only=True))"
            assert python(ours, nowhere, code) == os.path.join(snapshot, name)
        info = python(ours, nowhere, "cache = hub.scan_cache_dir(); print(len(cache.warnings), cache.repos)")
        assert info.startswith("0 "), info
        print("huggingface_hub reads what the server left")

        python(theirs, endpoint, f"hub.snapshot_download('{REPO}')")
        start(server, nowhere, theirs, HF_HUB_OFFLINE="1")
        print("the server reads what huggingface_hub left")

        assert layout(ours) == layout(theirs), (layout(ours), layout(theirs))
        print("both left the same files and links")
    hub.stdin.close()
    hub.wait()


main(*sys.argv[1:])
