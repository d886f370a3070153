"""Data distillation: a small set of synthetic or selected examples, such that training on it matches training on all.

| kind | what an example is | inner problem | file |
|---|---|---|---|
| features | a feature of the frozen encoder | ridge regression, solved exactly | `closed_form.py` |
| texts | a real text with a weight | logistic regression, solved; implicit gradient | `texts.py` |
| soft | a sequence of vectors that stand where embedded tokens stand | steps, unrolled | `bilevel.py`, `soft.py` |
| soft, of pairs | a soft query with a soft or a real document | the same, on a ranking loss | `pairs.py` |

`data_set.py` writes and reads a set, `judge.py` says what it is worth, and `distill.py` does all of it for a stream.
"""
