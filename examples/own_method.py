"""A method of your own in 30 lines: train on the new task, and on a few old examples in every batch.

python examples/own_method.py
"""

from torch import Tensor

import everlearn
from everlearn import Task, backbones, streams
from everlearn.memory.memory import Memory
from everlearn.methods import Finetune
from everlearn.streams import Examples


class FewOld(Finetune):
    """Finetuning, with old examples in every batch.

    Args:
        backbone: a pre-trained encoder.
        kept: how many examples are kept, over all tasks.
    """

    def __init__(self, backbone, *, kept: int = 100, **settings):
        super().__init__(backbone, **settings)
        self.memory = Memory(kept, seed=self.seed)  # a module, so checkpoints hold the examples

    def losses(self, batch: Examples) -> Tensor:
        return super().losses(Examples.concatenate([batch, self.memory.sample(len(batch))]))

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train)


if __name__ == "__main__":
    digits = streams.load("digits", tasks=2, max_train_per_class=40, max_test_per_class=20)
    for cls in (Finetune, FewOld):
        result = everlearn.run(cls(backbones.load("tiny"), epochs=10), digits)
        print(f"{cls.__name__:<10} old {result.old:.2f}  new {result.new:.2f}")
