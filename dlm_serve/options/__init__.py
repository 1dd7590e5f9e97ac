"""Options from outside: what they may be, and what they come to."""
