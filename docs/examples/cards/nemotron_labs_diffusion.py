"""As on Nemotron-Labs-Diffusion's card; the lines marked with a star are other than there."""

import sys

from transformers import AutoTokenizer

from dlm_serve import DiffusionLM  # *

repo_name = sys.argv[1] if len(sys.argv) > 1 else "nvidia/Nemotron-Labs-Diffusion-8B"

tokenizer = AutoTokenizer.from_pretrained(repo_name)
model = DiffusionLM.from_pretrained(repo_name)  # *

history = [{"role": "user", "content": "Calculate 504 * 3."}]
prompt = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids

for name, generate, options in (
    ("autoregressive", model.ar_generate, {}),
    ("diffusion", model.generate, {"block_length": 32, "threshold": 0.9}),
    ("self-speculation", model.linear_spec_generate, {"block_length": 32}),
):
    out_ids, nfe = generate(prompt_ids, max_new_tokens=128, eos_token_id=tokenizer.eos_token_id, **options)
    answer = tokenizer.batch_decode(out_ids[:, prompt_ids.shape[1] :], skip_special_tokens=True)[0]
    print(f"{name} (NFE={nfe}): {answer}")
