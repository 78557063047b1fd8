"""The same on object stores: S3 and GCS on loopback, spoken to by pyarrow's own clients."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from gcs_server import gcs_server
from s3_server import s3_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ROWS = [{"instruction": f"Double {i}.", "input": "", "output": str(2 * i)} for i in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

# In a process of its own: pyarrow's GCS client waits for the server without letting it run.
CHILD = """
import json, sys
from cluster.errors import DistilleryError
from distill.formats.convert import Plan, convert, open_source
from distill.formats.shapes import Shape

def go_away(doing, *_):
    if doing == "write":
        raise RuntimeError("the machine is taken away")

for source, out, options in json.loads(sys.argv[1]):
    shape = Shape(options["to"]) if "to" in options else None
    on_progress = go_away if options.get("break") else lambda *_: None
    try:
        report = convert(open_source(source), out, Plan(shape=shape),
                         split=options.get("split"), on_progress=on_progress)
        print(json.dumps({"rows": report.rows_out, "outputs": report.outputs}))
    except (DistilleryError, RuntimeError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


def converted(*jobs):
    """Convert (source, out, options) one after the other; the result or error of each."""
    aws = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "test")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(jobs)],
        cwd=ROOT,
        env={**os.environ, **aws, "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def s3():
    with s3_server() as server:
        yield server.objects, lambda key: f"s3://bucket/{key}?{server.query}"


@contextmanager
def gcs():
    with gcs_server() as server:
        yield server.objects, lambda key: f"gs://anonymous@bucket/{key}?{server.query}"


@pytest.fixture(params=[s3, gcs])
def bucket(request):
    """Its objects by "bucket/key", and a function that makes a URI of a key."""
    with request.param() as opened:
        yield opened


def test_a_bucket_is_read_and_written_like_a_folder(bucket, tmp_path):
    objects, uri = bucket
    objects["bucket/in/train.jsonl"] = LINES
    objects["bucket/in/test.jsonl"] = LINES.splitlines(keepends=True)[0]
    back = tmp_path / "back.jsonl"
    saved, _, _, again = converted(
        (uri("in"), uri("out/saved"), {"to": "messages"}),
        (uri("out/saved"), uri("out/a.parquet"), {"split": "train"}),
        (uri("out/a.parquet"), str(back), {"to": "alpaca"}),
        (str(back), uri("out/a.parquet"), {}),
    )
    assert saved["rows"] == {"train": 3000, "test": 1}
    assert saved["outputs"][0].endswith("://bucket/out/saved")
    assert [json.loads(line) for line in back.read_text().splitlines()] == ROWS
    assert "://bucket/out/a.parquet exists already" in again["error"]


def test_what_cannot_be_converted_leaves_no_object(bucket):
    objects, uri = bucket
    objects["bucket/in.jsonl"] = LINES + b"not json\n"
    jobs = [(uri("in.jsonl"), uri(out), {}) for out in ("out.jsonl", "out.parquet", "out")]
    *refused, missing = converted(*jobs, (uri("none.jsonl"), uri("out.jsonl"), {}))
    assert all("1 of 3,001 rows cannot be converted" in answer["error"] for answer in refused)
    assert "://bucket/none.jsonl: there is no such file" in missing["error"]
    assert list(objects) == ["bucket/in.jsonl"]


def test_what_breaks_off_while_it_is_written_leaves_no_object(bucket):
    objects, uri = bucket
    objects["bucket/in.jsonl"] = LINES
    outs = ("out.jsonl", "out.parquet", "out")
    answers = converted(*((uri("in.jsonl"), uri(out), {"break": True}) for out in outs))
    assert [answer["error"] for answer in answers] == [
        "RuntimeError: the machine is taken away"
    ] * 3
    # S3 has empty objects that stand for folders.
    assert [key for key in objects if not key.endswith("/")] == ["bucket/in.jsonl"]
