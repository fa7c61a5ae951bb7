"""SemAlign as users of transformers, peft and trl know a trainer.

    args = SemAlignConfig("runs/mine", num_train_epochs=3, pairing={"num_layers": 6})
    trainer = SemAlignTrainer("student", "teacher", args, rows, eval_dataset=heldout)
    trainer.train()
    trainer.save_model("student-trained")

The same steps as `transfer`, on models, rows and adapters that are in memory already, or on their names.
"""

from semalign.api.arguments import SemAlignConfig
from semalign.api.targets import cache_targets
from semalign.api.trainer import SemAlignTrainer

__all__ = ["SemAlignConfig", "SemAlignTrainer", "cache_targets"]
