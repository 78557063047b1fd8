"""Lengths in tokens or words, refusals, and the structure of Markdown answers."""

import re

import pytest
from pydantic import ValidationError

from cluster.config import read_toml
from cluster.errors import ConfigError
from distill.config import CurateConfig
from distill.curate import structure
from distill.curate.checks import checks
from distill.curate.config import StructureConfig
from distill.curate.refusals import FILE, refusal
from distill.curate.tokens import length_counter
from distill.tasks.task import load_task

TASK = load_task("reconcile")
EXAMPLES = StructureConfig(example_parts=("Input", "Output"), min_examples=2, consistent=True)
GOOD = """
## Statement
Add two numbers.

## Examples
### Example 1
- **Input:** 1, 2
- **Output:** 3

### Example 2
- **Input:** 2, 2
- **Output:**
```
4
```
"""


def run(completion, **config):
    row = {"completion": completion}
    return {
        reason: problem
        for reason, check in checks(CurateConfig(**config), TASK)
        if reason != "schema" and (problem := check(row))
    }


@pytest.mark.parametrize("entry", read_toml(FILE)["refusal"], ids=lambda e: e["example"][:30])
def test_each_pattern_matches_its_example(entry):
    assert re.search(entry["pattern"], entry["example"].lower())
    assert refusal(entry["example"])


@pytest.mark.parametrize(
    "text",
    [
        "I’m sorry, but I can’t help with that.",
        "I'M  SORRY, BUT I CANNOT\nASSIST with that.",
        "Thank you for asking. As a large language model, I cannot open files.",
    ],
)
def test_a_refusal_in_other_type_is_one(text):
    assert set(run(text)) == {"refusal"}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but your parcel is late; we will refund the postage.",
        "Refunds after 30 days are against our policy.",
        "You can't help but notice the difference of 0.40.",
        '{"reason": "I cannot match the vendor", "classification": "SUSPICIOUS"}',
        "The job failed. " * 30 + "It logs: I cannot assist with this request.",
    ],
)
def test_an_answer_that_only_sounds_like_a_refusal_stays(text):
    assert run(text) == {}


def test_refusals_of_ones_own_and_none_at_all():
    assert set(run("Leider nein.", refusal_patterns=("^leider nein",))) == {"refusal"}
    assert run("I cannot assist with this request.", refusals=False) == {}
    with pytest.raises(ValidationError, match="no regular expression"):
        CurateConfig(refusal_patterns=("(",))


def test_length_counts_words_where_no_tokenizer_is_named():
    limits = {"min_completion_tokens": 2, "max_completion_tokens": 4}
    assert run("one", **limits) == {"length": "1 words, at least 2"}
    assert run("one two three", **limits) == {}
    assert run("one two three four five", **limits) == {"length": "5 words, at most 4"}
    with pytest.raises(ValidationError, match="is above max_completion_tokens"):
        CurateConfig(min_completion_tokens=5, max_completion_tokens=4)


def test_length_counts_tokens_of_a_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    # Each character is a token, and the file says to cut after two.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert length_counter(str(tmp_path)).count("four") == 4
    found = run("four", tokenizer=str(tmp_path), max_completion_tokens=3)
    assert found == {"length": "4 tokens, at most 3"}
    with pytest.raises(ConfigError, match=r"there is no .*tokenizer\.json"):
        checks(CurateConfig(tokenizer=str(tmp_path / "none"), max_completion_tokens=3), TASK)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n```python\nx = 1\n", 2),
        ("```\na\n```\n~~~\nb\n```\n", 4),
        ("````\n```\n", 1),
        ("```\na\n``` b\n", 1),
    ],
)
def test_an_open_fence_is_named_by_its_line(text, line):
    assert run(text) == {"unclosed_fence": f"the code fence of line {line} is never closed"}
    assert run(text, structure={"closed_fences": False}) == {}


@pytest.mark.parametrize(
    "text", ["```\na\n```", "~~~ sql\n```\n~~~~", "inline ```x``` only", "    ```\nindented"]
)
def test_a_closed_fence_is_none(text):
    assert run(text) == {}


def test_sections_must_be_there_and_filled():
    wanted = StructureConfig(sections=("Statement", "examples"))
    assert structure.missing_section(GOOD, wanted) is None
    empty = GOOD.replace("Add two numbers.", "")
    assert structure.missing_section(empty, wanted) == "sections missing or empty: Statement"
    in_code = "```\n## Examples\nno\n```\n## Statement\nyes"
    assert structure.missing_section(in_code, wanted) == "sections missing or empty: examples"


def test_examples_must_be_complete():
    assert structure.incomplete_example(GOOD, EXAMPLES) is None
    cut = GOOD[: GOOD.index("- **Output:**\n")]
    assert structure.incomplete_example(cut, EXAMPLES) == "example 2 lacks Output"
    empty = GOOD.replace("**Output:** 3", "**Output:**")
    assert structure.incomplete_example(empty, EXAMPLES) == "example 1 lacks Output"
    one = GOOD[: GOOD.index("### Example 2")]
    assert structure.incomplete_example(one, EXAMPLES) == "1 examples, at least 2"


def test_bold_lines_open_examples_too():
    text = "**Example 1:**\nInput: 1\nOutput: 2\n\n**Example 2**\nInput: 3\nOutput: 4"
    assert structure.incomplete_example(text, EXAMPLES) is None


def test_formats_must_not_change_half_way():
    assert structure.inconsistent_format(GOOD, EXAMPLES) is None
    swapped = GOOD.replace("**Input:** 1, 2\n- **Output:** 3", "**Output:** 3\n- **Input:** 1, 2")
    assert "name their parts differently" in structure.inconsistent_format(swapped, EXAMPLES)
    mixed = "- one\n* two\n"
    assert structure.inconsistent_format(mixed, EXAMPLES) == "one list has the marks * and -"
    two_lists = "- one\n\nText between.\n\n* two\n"
    assert structure.inconsistent_format(two_lists, EXAMPLES) is None


def test_what_is_not_configured_is_no_step():
    names = [name for name, _ in checks(CurateConfig(), TASK)]
    assert names == [
        "too_short",
        "too_long",
        "encoding",
        "language",
        "repetition",
        "refusal",
        "unclosed_fence",
        "schema",
    ]
