"""BD3-LM, whose card loads the model and leaves sampling to its repository; a star marks what differs from the card."""

import sys

from transformers import AutoTokenizer

from dlm_serve import DiffusionLM  # *

repo_name = sys.argv[1] if len(sys.argv) > 1 else "kuleshov-group/bd3lm-owt-block_size4"

model = DiffusionLM.from_pretrained(repo_name)  # *
tokenizer = AutoTokenizer.from_pretrained(repo_name if len(sys.argv) > 1 else "gpt2")

prompt_ids = tokenizer([tokenizer.bos_token], return_tensors="pt").input_ids  # an empty prompt
out_ids, nfe = model.generate(prompt_ids, max_new_tokens=64, temperature=1.0, top_p=0.9)
print(f"NFE={nfe}, {out_ids.shape[1] - prompt_ids.shape[1]} tokens: {tokenizer.batch_decode(out_ids)[0]}")
