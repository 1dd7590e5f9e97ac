"""As on SDLM's card; the lines marked with a star are other than there."""

import sys

from transformers import AutoTokenizer

from dlm_serve import DiffusionLM, SDLM_generate  # *

repo_name = sys.argv[1] if len(sys.argv) > 1 else "OpenGVLab/SDLM-3B-D4"

model = DiffusionLM.from_pretrained(repo_name)  # *
tokenizer = AutoTokenizer.from_pretrained(repo_name)

messages = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Write a Fibonacci function in Python."},
]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
model_inputs = tokenizer([text], return_tensors="pt").to(model.device)

response, history = SDLM_generate(
    model,
    tokenizer,
    model_inputs,
    max_gen_len=128,
    temperature=0,
    threshold=0.5,
    n_future_tokens=4,
    alg="prob_conf",
    save_history=True,
    use_cache=True,
)
print(f"response, {len(history)} pieces, the last of {history[-1][1]} tokens: {response[0]}")
