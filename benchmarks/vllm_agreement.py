"""Count how many of Nemotron-Labs-Diffusion's recorded answers stay the same in bfloat16 on vLLM.

    python benchmarks/vllm_agreement.py [--tp 2] [--out NAME]     # prints a table, writes benchmarks/results/NAME.json

The same cases, all at once, and the same counts as `bf16_agreement.py` has for SGLang: it should keep about as many.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("VLLM_PLUGINS", "dlm_serve")  # before vLLM is imported

import report
from bf16_agreement import CHECKPOINTS, compare  # puts tests/support on the path
from golden import DATA, NEMOTRON_LABS_DIFFUSION, by_adapter, vllm_request_of

FLAGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 1 << 30,  # not measured: others on the card may free some meanwhile, which ends vLLM
}


def measure(name: str, **flags: Any) -> dict[str, int]:
    """Compare the answers of one checkpoint with its reference's."""
    from vllm import LLM, SamplingParams

    golden, model = NEMOTRON_LABS_DIFFUSION, DATA / name
    cases = by_adapter(golden.cases(model), adapter="lora" in name)
    requests = [vllm_request_of(case) for case in cases]
    engine = LLM(str(model), **FLAGS, **flags)
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [SamplingParams(temperature=0.0, **params) for _, params in requests]
    answers = [output.outputs[0] for output in engine.generate(prompts, params, use_tqdm=False)]
    engine.llm_engine.engine_core.shutdown()
    found = compare(golden, cases, [{"output_ids": list(answer.token_ids)} for answer in answers])
    forwards = [answer.spec_decode_metrics.to_dict()["num_spec_steps"] for answer in answers]
    return {**found, "forwards": sum(forwards), "forwards of the reference": sum(map(golden.expected_nfe, cases))}


def main() -> None:
    """Print a row for each checkpoint, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tp", type=int, default=1, help="ranks")
    parser.add_argument("--memory", type=float, default=0.1, help="share of the GPU's memory")
    parser.add_argument("--eager", action="store_true", help="neither compiled nor in graphs")
    parser.add_argument("--out", default="vllm_agreement", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    flags = {
        "tensor_parallel_size": options.tp,
        "gpu_memory_utilization": options.memory,
        "enforce_eager": options.eager,
    }
    results = {}
    for name, golden in CHECKPOINTS.items():
        if golden is NEMOTRON_LABS_DIFFUSION:
            results[name] = measure(name, **flags)
            print(f"{name:24} {' '.join(f'{key}: {value}' for key, value in results[name].items())}", flush=True)
    report.write(options.out, {"ranks": options.tp, "checkpoints": results}, "vllm", "torch", "triton")


if __name__ == "__main__":
    main()
