"""Fine-tuning a Stable Diffusion U-Net on a set of pictures with captions, as the studies of memorization do.

Only the U-Net is trained; autoencoder and text encoder stay as they are. One trainer serves MiniSD's scenarios
(`memlib minisd finetune`) and the real models (`memlib finetune`).
"""

from __future__ import annotations

from memlib.training.finetune.examples import Example, TrainingSet, read_training_set
from memlib.training.finetune.part import FinetunePart
from memlib.training.finetune.recipes import Recipe, load_recipes, recipe
from memlib.training.finetune.run import export, finetune

__all__ = ["Example", "FinetunePart", "Recipe", "TrainingSet", "export", "finetune", "load_recipes", "read_training_set", "recipe"]
