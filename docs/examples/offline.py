"""Generate without a server: python docs/examples/offline.py "A prompt" --mode diffusion --max-new-tokens 64"""

from __future__ import annotations

import argparse

import sglang as sgl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--model-path", default="nano")
    parser.add_argument("--mode", default="auto", help="auto, autoregressive, diffusion or self_speculation")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()

    engine = sgl.Engine(model_path=args.model_path, log_level="error")
    try:
        answer = engine.generate(
            args.prompt,
            {"max_new_tokens": args.max_new_tokens, "custom_params": {"dlm": {"mode": args.mode}}},
        )
        print(answer["text"])
        print(answer["meta_info"]["dlm"], flush=True)  # shutdown ends the process without flushing
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
