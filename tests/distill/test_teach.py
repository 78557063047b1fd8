"""Teachers answer prompts: a program, a recording, or a model behind a real HTTP server."""

import json
import time

import pytest
from openai_server import completion, openai_server

from cluster.errors import ConfigError, DataError, PrerequisiteError
from cluster.storage import Store
from distill.prompts.split import build_rows
from distill.tasks.task import load_task
from distill.teach.answer import Answer, journal_row
from distill.teach.ask import ask, cache_folder, request_keys
from distill.teach.bill import bill
from distill.teach.config import (
    LiteLLMTeacher,
    Price,
    ProgramTeacher,
    ReplayTeacher,
    VLLMTeacher,
)
from distill.teach.identity import request_key
from distill.teach.journal import Journal, read_journal
from distill.teach.stage import check_teacher
from distill.teach.teacher import build_teacher
from distill.teach.terms import terms_of
from jobs.init import init_task

pytestmark = pytest.mark.slow  # LiteLLM takes seconds to import

FREE = Price(input_usd_per_mtok=2.0, output_usd_per_mtok=10.0)


def reconcile_rows(count):
    task = load_task("reconcile")
    return build_rows(task, list(task.function("scenarios:scenarios")(count, 1)))


def model_teacher(url, **fields):
    return LiteLLMTeacher(model="openai/local", api_base=url, price=FREE, **fields)


def test_a_program_answers_and_its_exception_fails_one_row_only():
    task = load_task("reconcile")
    rows = reconcile_rows(5)
    rows[2] = {**rows[2], "variables": "{}"}
    answers = build_teacher(ProgramTeacher(), task).answer(rows)
    assert [bool(a.error) for a in answers] == [False, False, True, False, False]
    assert "KeyError" in answers[2].error
    assert json.loads(answers[0].completion)["classification"]


def test_a_recording_is_joined_by_the_prompts_id(tmp_path):
    init_task(str(tmp_path / "t"))
    task = load_task(tmp_path / "t")
    rows = build_rows(task, [{"id": "t001", "ticket": "x"}, {"id": "nope", "ticket": "y"}])
    answers = build_teacher(ReplayTeacher(file="answers.jsonl"), task).answer(rows)
    assert "team" in answers[0].completion
    assert answers[1].error == "no recorded answer for this prompt"


def test_a_recording_may_count_its_ids_from_zero(tmp_path):
    init_task(str(tmp_path / "t"))
    task = load_task(tmp_path / "t")
    lines = ('{"id": 0, "completion": "a"}', '{"example_id": null, "id": 1, "completion": "b"}')
    (tmp_path / "t/answers.jsonl").write_text("\n".join(lines))
    rows = build_rows(task, [{"id": 0, "ticket": "x"}, {"id": 1, "ticket": "y"}])
    answers = build_teacher(ReplayTeacher(file="answers.jsonl"), task).answer(rows)
    assert [answer.completion for answer in answers] == ["a", "b"]


def test_a_recording_without_completions_is_refused_before_work(tmp_path):
    init_task(str(tmp_path / "t"))
    (tmp_path / "t/answers.jsonl").write_text('{"id": "t001"}\n')
    with pytest.raises(DataError, match="line 1: needs `completion`"):
        check_teacher(ReplayTeacher(file="answers.jsonl"), load_task(tmp_path / "t"))
    with pytest.raises(ConfigError, match="no such file"):
        check_teacher(ReplayTeacher(file="missing.jsonl"), load_task(tmp_path / "t"))


def test_a_model_is_asked_and_its_tokens_and_dollars_recorded():
    rows = reconcile_rows(3)
    with openai_server(lambda body, number: (200, "one two three")) as server:
        teacher = build_teacher(model_teacher(server.url, repair=False), load_task("reconcile"))
        answers = teacher.answer(rows)
    assert [a.completion for a in answers] == ["one two three"] * 3
    words = sum(len(m["content"].split()) for m in rows[0]["messages"])
    assert answers[0].prompt_tokens == words
    assert answers[0].cost_usd == pytest.approx((2.0 * words + 10.0 * 3) / 1e6)
    assert answers[0].latency_s > 0
    sent = [request["messages"] for request in server.requests]
    assert all(row["messages"] in sent for row in rows)


def test_rate_limits_and_server_errors_are_retried_and_bad_requests_are_not():
    def respond(body, number):
        if "refuse" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "refused", "type": "invalid_request_error"}}
        return [(429, {"error": {"message": "slow"}}), (500, {"error": {"message": "oops"}})][
            number - 1
        ] if number <= 2 else (200, "fine")  # fmt: skip

    ask = {"variables": "{}", "example_id": "a", "prompt_id": ""}
    with openai_server(respond) as server:
        teacher = build_teacher(model_teacher(server.url, repair=False), load_task("reconcile"))
        good = teacher.answer([{**ask, "messages": [{"role": "user", "content": "hello"}]}])
        asked = len(server.requests)
        bad = teacher.answer([{**ask, "messages": [{"role": "user", "content": "refuse"}]}])
        assert (good[0].completion, asked) == ("fine", 3)
        assert good[0].retried == ("rate_limit", "server")
        assert bad[0].failure == "refused"
        assert "BadRequestError" in bad[0].error
        assert len(server.requests) == 4


def test_a_missing_key_or_price_stops_before_any_request(monkeypatch):
    task = load_task("reconcile")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    claude = LiteLLMTeacher(model="anthropic/claude-sonnet-4-20250514", accept_teacher_terms=True)
    with pytest.raises(PrerequisiteError, match="ANTHROPIC_API_KEY"):
        check_teacher(claude, task)
    with pytest.raises(PrerequisiteError, match="MY_OWN_KEY"):
        check_teacher(model_teacher("http://127.0.0.1:9/v1", api_key_env="MY_OWN_KEY"), task)
    unknown = LiteLLMTeacher(model="openai/never-heard-of", api_base="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=r"price table does not know it.*\[teacher.price\]"):
        check_teacher(unknown, task)


def test_a_model_costs_in_a_budget_what_it_costs_in_the_tables():
    from distill.teach.litellm import token_prices

    claude = LiteLLMTeacher(model="anthropic/claude-sonnet-4-20250514")
    # LiteLLM has no entry for it, and answers with one of zero dollars.
    assert token_prices(claude) == pytest.approx((3e-6, 3e-6, 15e-6))
    nano = LiteLLMTeacher(model="openai/gpt-4.1-nano")
    assert token_prices(nano) == pytest.approx((0.1e-6, 0.025e-6, 0.4e-6))
    with pytest.raises(ConfigError, match="price table does not know it"):
        token_prices(LiteLLMTeacher(model="ollama/llama3"))
    own = Price(input_usd_per_mtok=0, output_usd_per_mtok=0)
    assert token_prices(LiteLLMTeacher(model="ollama/llama3", price=own)) == (0, 0, 0)


def test_a_budget_that_pays_for_no_request_is_refused_before_one_is_sent(tmp_path):
    task, rows = load_task("reconcile"), reconcile_rows(2)
    with openai_server(lambda body, number: (200, "{}")) as server:
        teacher = model_teacher(server.url, budget_usd=1e-6, max_tokens=100)
        keys = request_keys(rows, teacher, task)
        asked = [{**row, "sample": 0, "request_key": k} for row, k in zip(rows, keys, strict=True)]
        with pytest.raises(ConfigError, match=r"budget_usd 1e-06 does not pay for one .* \$0\.00"):
            ask(asked, teacher, task, store=Store(tmp_path / "runs/a"))
        assert server.requests == []


def test_a_server_that_counts_nothing_is_counted_here_up_to_what_was_set_aside(caplog):
    [row] = reconcile_rows(1)

    def respond(body, number):
        silent = completion(body, f"no {number}")
        usage = [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}]
        silent["usage"] = usage[number % 2]
        return 200, silent

    with openai_server(respond) as server:
        task = load_task("reconcile")
        teacher = build_teacher(model_teacher(server.url, max_tokens=50), task)
        [answer] = teacher.answer([row])
        most_usd = teacher.most_usd(row)
        teacher.answer([row])
        own = model_teacher(server.url).model_copy(
            update={"price": Price(input_usd_per_mtok=0, output_usd_per_mtok=0)}
        )
        [free] = build_teacher(own, task).answer([row])
    assert answer.requests == 2
    assert answer.prompt_tokens > 2 * sum(len(m["content"]) for m in row["messages"])
    assert answer.completion_tokens == len("no 1" + "no 2")
    assert 0 < answer.cost_usd <= most_usd
    assert answer.cost_usd == pytest.approx(
        (2.0 * answer.prompt_tokens + 10.0 * answer.completion_tokens) / 1e6
    )
    assert (free.prompt_tokens, free.cost_usd) == (0, 0)
    [said] = [record.message for record in caplog.records if "usage" in record.message]
    assert "openai/local" in said


@pytest.mark.parametrize("structured", ["off", "json_schema"])
def test_what_is_set_aside_holds_where_every_byte_is_a_token(structured):
    task, [row] = load_task("reconcile"), reconcile_rows(1)
    wrong = json.dumps({"classification": "ä" * 3000}, ensure_ascii=False)
    longest = len(wrong.encode())

    def respond(body, number):
        sent = [m["content"] for m in body["messages"]]
        schema = body.get("response_format")
        tokens = sum(len(text.encode()) for text in sent) + len(json.dumps(schema or ""))
        dear = completion(body, wrong)
        dear["usage"] = {"prompt_tokens": tokens, "completion_tokens": 9, "total_tokens": tokens}
        return 200, dear

    with openai_server(respond) as server:
        config = model_teacher(server.url, max_tokens=longest, structured=structured)
        teacher = build_teacher(config, task)
        [answer] = teacher.answer([row])
        assert len(server.requests) == 2
    # The repair sends the answer back, and its complaint quotes a part of it.
    assert answer.cost_usd <= teacher.most_usd(row) - 2 * (longest - 9) * 10e-6


def test_only_what_changes_an_answer_changes_its_key():
    row = reconcile_rows(1)[0]
    base = LiteLLMTeacher(model="m")
    assert request_key(row, base) == request_key(row, base.model_copy(update={"concurrency": 1}))
    assert request_key(row, base) != request_key(row, base.model_copy(update={"temperature": 1.0}))
    assert request_key(row, base) != request_key({**row, "messages": []}, base)


def test_an_answer_that_was_cut_off_is_paid_for_and_no_answer():
    def respond(body, number):
        cut = completion(body, "one two three")
        cut["choices"][0]["finish_reason"] = "length"
        return 200, cut

    with openai_server(respond) as server:
        teacher = build_teacher(model_teacher(server.url, max_tokens=3), load_task("reconcile"))
        [answer] = teacher.answer(reconcile_rows(1))
        assert len(server.requests) == 1
    assert answer.failure == "truncated"
    assert answer.error == "cut off at teacher.max_tokens 3; raise it"
    assert (answer.completion_tokens, answer.cost_usd > 0) == (3, True)


def test_what_was_cut_off_is_not_asked_again_with_the_same_limit(tmp_path):
    task, rows, store = load_task("reconcile"), reconcile_rows(2), Store(tmp_path / "runs/a")
    # Nobody listens there: what is asked fails.
    teacher = model_teacher("http://127.0.0.1:9/v1", max_tokens=3)
    keys = request_keys(rows, teacher, task)
    asked = [{**row, "sample": 0, "request_key": k} for row, k in zip(rows, keys, strict=True)]
    with Journal(cache_folder(teacher, store=store)) as journal:
        for row in asked:
            cut = Answer(completion="one", error="cut off", failure="truncated", cost_usd=0.01)
            journal.add(journal_row(row, cut, teacher="t", payer="a"))
    known = ask(asked, teacher, task, store=store)
    assert (known.answered, set(known.failed)) == ({}, set(keys))
    entry = bill(known.of_interest, keys=set(keys), payer="a")["models"]["t"]
    assert (entry["answered"], entry["failed"], entry["usd"]) == (0, {"truncated": 2}, 0.02)
    assert request_keys(rows, teacher.model_copy(update={"max_tokens": 4}), task) != keys


def test_a_batch_on_the_cluster_knows_an_answer_that_was_cut_off_by_its_tokens(tmp_path):
    from distill.teach.vllm_batch import _JournalWriter

    rows = [{"request_key": str(i), "example_id": str(i)} for i in range(2)]
    writer = _JournalWriter(VLLMTeacher(model="m", max_tokens=8), "t", str(tmp_path), "run")
    done = writer(
        {
            "row": [json.dumps(row) for row in rows],
            "text": ["whole", "half of"],
            "error": ["", ""],
            "prompt_tokens": [5, 5],
            "completion_tokens": [7, 8],
            "latency_s": [0.1, 0.1],
        }
    )
    assert done["error"] == [b""]
    whole, cut = read_journal(tmp_path)
    assert (whole["error"], whole["completion"]) == ("", "whole")
    assert (cut["error"], cut["failure"]) == (
        "cut off at teacher.max_tokens 8; raise it", "truncated",
    )  # fmt: skip


def test_garbage_instead_of_a_completion_is_asked_again():
    answers = [(200, b"<html>busy</html>"), (200, {"choices": []}), (200, {"id": 1}), (200, "fine")]
    with openai_server(lambda body, number: answers[number - 1]) as server:
        teacher = build_teacher(model_teacher(server.url, repair=False), load_task("reconcile"))
        [answer] = teacher.answer(reconcile_rows(1))
    assert answer.completion == "fine"
    assert answer.retried == ("malformed",) * 3


def test_a_server_that_hangs_ends_as_a_failed_row_in_time():
    def respond(body, number):
        time.sleep(3)
        return 200, "late"

    with openai_server(respond) as server:
        fields = {"timeout_s": 0.3, "max_retries": 1, "repair": False}
        teacher = build_teacher(model_teacher(server.url, **fields), load_task("reconcile"))
        [answer] = teacher.answer(reconcile_rows(1))
    assert (answer.failure, answer.retried) == ("timeout", ("timeout",))


def test_an_answer_that_does_not_fit_is_repaired_once_and_paid_twice():
    task = load_task("reconcile")
    [row] = reconcile_rows(1)
    right = task.function("rules:answer")(json.loads(row["variables"]))
    with openai_server(lambda body, number: (200, "I think so" if number == 1 else right)) as s:
        [answer] = build_teacher(model_teacher(s.url), task).answer([row])
        assert answer.completion == right
        said = [message["content"] for message in s.requests[1]["messages"][-2:]]
        assert said[0] == "I think so"
        assert "not JSON" in said[1]
    assert (answer.requests, len(s.requests)) == (2, 2)
    assert answer.cost_usd == pytest.approx(
        (2.0 * answer.prompt_tokens + 10.0 * answer.completion_tokens) / 1e6
    )
    with openai_server(lambda body, number: (200, f"no {number}")) as s:
        [answer] = build_teacher(model_teacher(s.url), task).answer([row])
    # Still wrong: the first answer goes on to curation, which says why it is rejected.
    assert (answer.completion, len(s.requests)) == ("no 1", 2)


def test_the_schema_is_sent_where_it_is_asked_for():
    task = load_task("reconcile")
    with openai_server(lambda body, number: (200, "x")) as server:
        for structured in ("off", "auto", "json_object", "json_schema"):
            teacher = model_teacher(server.url, structured=structured, repair=False, seed=7)
            build_teacher(teacher, task).answer(reconcile_rows(1))
        formats = [request.get("response_format") for request in server.requests]
    # `openai/local` is no model that LiteLLM knows to enforce a schema.
    assert formats[:3] == [None, None, {"type": "json_object"}]
    assert formats[3]["json_schema"]["schema"] == task.schema
    assert server.requests[0]["seed"] == 7


def test_a_teacher_whose_terms_restrict_training_must_be_accepted(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    task = load_task("reconcile")
    claude = LiteLLMTeacher(model="anthropic/claude-sonnet-4-20250514")
    with pytest.raises(ConfigError, match=r"Anthropic restricts.*accept_teacher_terms = true"):
        check_teacher(claude, task)
    check_teacher(claude.model_copy(update={"accept_teacher_terms": True, "price": FREE}), task)


@pytest.mark.parametrize(
    ("model", "restricted"),
    [
        ("openai/gpt-5", True),
        ("azure/my-deployment", True),
        ("groq/openai/gpt-oss-120b", False),
        ("gemini/gemini-2.5-pro", True),
        ("together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", False),
        ("openai/my-own-server", None),
    ],
)
def test_the_table_of_terms(model, restricted):
    terms = terms_of(model)
    assert (terms and terms["restricted"]) == restricted
