"""Adapters of a bucket of moto's, an S3 server that nobody here wrote, put there by boto3.

Usage: s3_bucket.py SERVER_BINARY PLUGIN_FOLDER DEMO_FOLDER
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import boto3
from moto.server import ThreadedMotoServer

PORT = int(os.environ.get("PORT", "18433"))
KEYS = dict(AWS_ACCESS_KEY_ID="an-id", AWS_SECRET_ACCESS_KEY="a-secret", AWS_REGION="us-east-1")


def ask(model):
    """The status and the text, or the error's message, of a completion."""
    body = dict(model=model, prompt="Once upon a time", max_tokens=16, temperature=0, ignore_eos=True)
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/completions",
        json.dumps(body).encode(), {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


class Server:
    """The server over the bucket, until the block ends."""

    def __init__(self, binary, plugins, demo, endpoint, cache):
        environment = dict(
            os.environ, **KEYS, AWS_ENDPOINT_URL=endpoint, ALLOW_RUNTIME_LORA_UPDATING="1",
            PLUGINS="lora_s3_resolver", PLUGIN_DIR=plugins, LORA_RESOLVER_S3_CACHE_DIR=cache,
            LORA_RESOLVER_S3_URI="s3://adapters/loras/{lora_name}",
        )
        command = [
            binary, str(demo / "model"), "--served-model-name", "base", "--port", str(PORT),
            "--resolver-negative-ttl", "0", "--lora-modules",
            *(f"loaded-{name}={demo / 'adapters' / name}" for name in ("poet", "pirate")),
        ]
        self.process = subprocess.Popen(command, env=environment)

    def __enter__(self):
        for _ in range(1200):
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=60).close()
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def main(binary, plugins, demo):
    demo = pathlib.Path(demo)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    endpoint = "http://{}:{}".format(*moto.get_host_and_port())
    s3 = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="an-id", aws_secret_access_key="a-secret",
    )
    s3.create_bucket(Bucket="adapters")

    def put(name, adapter, multipart=False):
        folder = demo / "adapters" / adapter
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "base"
        s3.put_object(Bucket="adapters", Key=f"loras/{name}/adapter_config.json", Body=json.dumps(config))
        where = dict(Bucket="adapters", Key=f"loras/{name}/adapter_model.safetensors")
        weights = (folder / "adapter_model.safetensors").read_bytes()
        if not multipart:
            return s3.put_object(**where, Body=weights)
        # Its ETag is no digest of the content.
        upload = s3.create_multipart_upload(**where)["UploadId"]
        part = s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=weights)
        parts = dict(Parts=[dict(ETag=part["ETag"], PartNumber=1)])
        return s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)

    put("team/poet", "poet")
    put("parts", "pirate", multipart=True)
    put("changing", "poet")
    with tempfile.TemporaryDirectory() as cache:
        with Server(binary, plugins, demo, endpoint, cache):
            expected = {name: ask(f"loaded-{name}") for name in ("poet", "pirate")}
            assert expected["poet"] != expected["pirate"], expected
            assert ask("team/poet") == expected["poet"]
            assert ask("parts") == expected["pirate"]
            assert ask("changing") == expected["poet"]
            assert ask("nobody")[0] == 404
            assert ask("../loras/team/poet")[0] == 404
            print("adapters of the bucket are found")
        put("changing", "pirate")
        with Server(binary, plugins, demo, endpoint, cache):
            assert ask("changing") == expected["pirate"]
            assert ask("team/poet") == expected["poet"]
            print("an adapter that was replaced is fetched anew")
            moto.stop()
            assert ask("parts") == expected["pirate"]
            print("what the cache holds serves while the bucket does not")
            assert ask("unseen")[0] == 503


main(*sys.argv[1:])
