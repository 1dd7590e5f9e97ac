"""Self-speculation in one forward per cycle: a row verifies its draft and drafts the next behind the likeliest stops.

A row is a chain, the tokens that the client has and the draft behind them, and groups of masks, each behind a token
of the chain at which verification may stop. The chain is causal, as autoregression sees it. The masks of a group see
the chain up to the token that they stand behind, and each other: what the draft forward of two would have shown them.
Beside the chain stand second choices, each in place of one drafted token: where verification finds one, the forward
says what follows that, too.

`plan` chooses what a row holds, `layout` puts them into the columns of a row, `advance` takes what the forward says.
"""

from dlm_serve.decoding.one_forward.advance import advance
from dlm_serve.decoding.one_forward.layout import GroupForm, Layout, lay_out
from dlm_serve.decoding.one_forward.plan import LONGEST_CHAIN, GroupPlan, plan_groups

__all__ = ["LONGEST_CHAIN", "GroupForm", "GroupPlan", "Layout", "advance", "lay_out", "plan_groups"]
