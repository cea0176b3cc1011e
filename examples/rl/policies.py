"""A server's policies over HTTP: push one in place, sample from it, and hold the answer to what was pushed."""

import json
import secrets
import urllib.error
import urllib.request

# Seconds without a byte after which a server counts as gone.
SILENCE = 300


class Server:
    """`key` is the admin key, where the server has one."""

    def __init__(self, url, key=None):
        self.url = url.rstrip("/")
        self.headers = {"accept": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def push(self, name, version, config, weights):
        """Makes an adapter the newest generation of `name`. Its bytes travel in the request: no common disk is needed."""
        boundary = secrets.token_hex(16)
        part = '--{}\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
        form = b"".join([
            part.format(boundary, "config").encode(), config, b"\r\n",
            part.format(boundary, "weights").encode(), weights, f"\r\n--{boundary}--\r\n".encode(),
        ])
        path = f"/v1/lora_adapters/{name}?policy_version={version}"
        return self._call("PUT", path, form, f"multipart/form-data; boundary={boundary}")

    def sample(self, name, version, prompt, **sampling):
        """The server's answer to `prompt`, every token of it drawn by `version` of the policy."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": name, "messages": messages, "return_weight_versions": True, "min_policy_version": version}
        answer = self._call("POST", "/v1/chat/completions", json.dumps(body | sampling).encode(), "application/json")
        for choice in answer["choices"]:
            drawn_by = {span["policy_version"] for span in choice["weight_versions"]}
            if drawn_by != {version}:
                raise RuntimeError(f"{name}: asked for version {version}, tokens are of {sorted(drawn_by, key=str)}")
        return answer

    def _call(self, method, path, body, content_type):
        headers = self.headers | {"content-type": content_type}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SILENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise RuntimeError(f"{method} {path} answered {error.code}: {reason}") from error
