"""Text on one side, token ids on the other: tokenizer, chat template, detokenizer, stop strings. Knows no engine."""
