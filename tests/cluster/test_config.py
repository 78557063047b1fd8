"""One TOML file a run; every problem is reported at once, with the fix."""

import pytest

from cluster.config import load_config, merge, parse_overrides
from cluster.errors import ConfigError
from jobs.config import RunConfig, load_run_config

GOOD = """
[task]
folder = "reconcile"
[student]
model = "some-model"
"""


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_defaults_then_files_then_flags(tmp_path):
    first = write(tmp_path, GOOD + "rank = 8\n[train]\nepochs = 2\nworkers = 4\nbatch_size = 8\n")
    second = tmp_path / "more.toml"
    second.write_text("[train]\nepochs = 3\n")
    config = load_run_config([first, second], overrides=["--train.learning_rate", "1e-4"])
    assert (config.student.rank, config.train.workers) == (8, 4)
    assert config.train.epochs == 3
    assert config.train.learning_rate == 1e-4
    assert config.student.alpha == 32


def test_every_problem_is_named_at_once_with_the_nearest_field(tmp_path):
    path = write(
        tmp_path,
        '[task]\nfolder = "x"\n[student]\nmodle = "m"\nrank = "many"\n[train]\nepoch = 3\n[trian]',
    )
    with pytest.raises(ConfigError) as caught:
        load_run_config([path])
    message = str(caught.value)
    assert "5 problems" in message
    assert "student.modle: unknown field; did you mean 'model'?" in message
    assert "student.rank: 'many' cannot be used" in message
    assert "train.epoch: unknown field; did you mean 'epochs'?" in message
    assert "trian: unknown field; did you mean 'train'?" in message


def test_a_truth_or_infinity_is_no_number_and_a_rate_of_50_no_rate(tmp_path):
    path = write(tmp_path, GOOD + "[train]\nepochs = true\nlearning_rate = inf\n")
    with pytest.raises(ConfigError) as caught:
        load_run_config([path], overrides=["--gates.min_transfer_ratio", "80"])
    message = str(caught.value)
    assert "train.epochs: 'true' cannot be used" in message
    assert "train.learning_rate: inf cannot be used" in message
    assert "gates.min_transfer_ratio: 80 cannot be used" in message


def test_a_teacher_of_no_or_of_an_unknown_kind_is_told_the_kinds(tmp_path):
    allowed = r"allowed: 'litellm', 'program', 'replay', 'several', 'vllm'"
    with pytest.raises(ConfigError, match=rf"teacher\.kind: 'openai' cannot be used; {allowed}"):
        load_run_config([write(tmp_path, GOOD + '[teacher]\nkind = "openai"\n')])
    with pytest.raises(ConfigError, match=rf"teacher\.kind: is required; {allowed}"):
        load_run_config([write(tmp_path, GOOD + '[teacher]\nmodel = "m"\n')])


def test_a_folder_is_told_which_file_in_it_is_meant(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=f"is a folder; give the configuration in it: {path}"):
        load_run_config([tmp_path])


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_run_config([path]).student.model == "some-model"


def test_a_flag_below_a_value_is_a_sentence():
    with pytest.raises(ConfigError, match=r"train\.epochs was given a value before"):
        parse_overrides(["--train.epochs", "2", "--train.epochs.x", "3"])


def test_an_unknown_field_of_a_teacher_is_compared_with_that_kind_of_teacher(tmp_path):
    path = write(tmp_path, GOOD + '[teacher]\nkind = "litellm"\nmodel = "x"\ntemprature = 0.2\n')
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        load_run_config([path])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--student.rank", "64"], "student.rank 64 is above serve.max_lora_rank 16"),
        (["--student.max_length", "4096"], "student.max_length 4096 is above serve.max_model_len"),
        (["--serve.max_lora_rank", "513"], r"serve\.max_lora_rank: .*512"),
        (["--train.batch_size", "7"], "batch_size 7 must be a multiple of workers 2"),
    ],
)
def test_sections_that_disagree_fail_before_anything_is_loaded(tmp_path, flags, words):
    with pytest.raises(ConfigError, match=words):
        load_run_config([write(tmp_path, GOOD)], overrides=flags)


def test_broken_toml_names_file_and_line(tmp_path):
    path = write(tmp_path, "[task\n")
    with pytest.raises(ConfigError, match=r"run\.toml is not valid TOML.*line 1"):
        load_config(RunConfig, [path])


def test_flags_are_toml_values_or_plain_strings():
    flags = ["--a.b", "3", "--a.c=x/y", "--a.d", "[1, 2]", "--e.f-g", "true"]
    assert parse_overrides(flags) == {"a": {"b": 3, "c": "x/y", "d": [1, 2]}, "e": {"f_g": True}}


def test_a_flag_without_its_value_is_an_error():
    with pytest.raises(ConfigError, match=r"--a\.b: a value must follow"):
        parse_overrides(["--a.b"])


def test_a_table_of_another_kind_replaces_the_whole_table():
    base = {"teacher": {"kind": "replay", "file": "a.jsonl"}}
    over = {"teacher": {"kind": "litellm", "model": "m"}}
    assert merge(base, over) == over
    assert merge(base, {"teacher": {"kind": "replay", "file": "b"}})["teacher"]["file"] == "b"
    assert merge(over, {"teacher": {"concurrency": 4}})["teacher"]["model"] == "m"


def test_merge_keeps_what_the_later_file_does_not_name():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}
