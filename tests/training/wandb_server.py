"""A W&B server of this machine, as much of one as a run's history needs: what it was sent can be looked at."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0" * 40  # of an account


class Run:
    """What the server keeps of a run."""

    def __init__(self, name):
        self.name = name
        self.lines: dict[str, list[str]] = {}  # of its files, by name
        self.upserts: list[dict] = []

    @property
    def history(self):
        """The rows, as they lie there."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self):
        """The last one that was sent."""
        return json.loads(self.lines["wandb-summary.json"][-1])

    def take(self, files):
        """A part of the stream: lines of files, each from a line number on."""
        for name, part in files.items():
            lines = self.lines.setdefault(name, [])
            lines[part["offset"] :] = [] if name.endswith(".json") else lines[part["offset"] :][len(part["content"]) :]
            lines[part["offset"] : part["offset"]] = part["content"]

    def bucket(self):
        """What it says of itself."""
        project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "us"}}
        return {
            "id": "cnVu",
            "name": self.name,
            "displayName": self.name,
            "description": "",
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(self.history),
        }

    def status(self):
        """What it says to who resumes it."""
        return {
            "name": self.name,
            "historyLineCount": len(self.history),
            "eventsLineCount": len(self.lines.get("wandb-events.jsonl", [])),
            "logLineCount": 0,
            "historyTail": json.dumps(self.lines.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": "[]",
            "summaryMetrics": self.lines.get("wandb-summary.json", ["{}"])[-1],
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class Server:
    """While this context is open it listens at `url`.

    Args:
        port: where; 0: anywhere.
    """

    def __init__(self, port=0):
        self.runs: dict[str, Run] = {}
        self.asked: list[str] = []
        self.project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "us"}}
        self.viewer = {"id": "dQ==", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                told = json.loads(body) if body[:1] == b"{" else {}  # telemetry speaks otherwise
                answer = json.dumps(server.answer(self.path, told)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path, body):
        """To a part of a stream, or a GraphQL query."""
        if path.endswith("/file_stream"):
            self.asked.append("file_stream")
            self.runs[path.split("/")[-2]].take(body.get("files") or {})
            return {}
        query, variables = body.get("query", ""), body.get("variables") or {}
        name = [*query.replace("(", " ").split(), "", ""][1]
        self.asked.append(name)
        if name == "UpsertBucket":
            found = variables["name"] in self.runs
            run = self.runs.setdefault(variables["name"], Run(variables["name"]))
            run.upserts.append(variables)
            return {"data": {"upsertBucket": {"bucket": run.bucket(), "inserted": not found}}}
        if name == "RunResumeStatus":
            run = self.runs.get(variables["name"])
            bucket = None if run is None else run.status()
            return {"data": {"model": {**self.project, "bucket": bucket}}}
        if name == "Viewer":
            return {"data": {"viewer": self.viewer}}
        if name == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        return {"errors": [{"message": f"this server knows no {name}"}], "data": None}
