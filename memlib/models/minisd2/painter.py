"""Painting scenes in batches by gathers on tensors, on any device: pixel for pixel what pasting the drawings with PIL gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memlib.models.minisd.ingredients import Ingredients
from memlib.models.minisd.paths import minisd_folder
from memlib.models.minisd.scenes import SIZE, Background, Scene, paint_background
from memlib.models.minisd2.scenes import RENDERING, SIZES, concepts


class Painter:
    """Call it with N scenes for their pictures, uint8 [N, 64, 64, 3] on `device`.

    Every drawing is held in every size (some 5 MB), and every background from its first use on. Things must lie inside of the picture.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        ingredients = Ingredients(minisd_folder() / "ingredients")
        self._row = {index: row for row, index in enumerate(concepts())}
        # The drawings of one size, int16 [concepts, size * size, 4], and where their pixels fall on a canvas from its first corner on.
        self._drawn, self._offsets = {}, {}
        for size in SIZES:
            cells = np.stack([np.asarray(ingredients.drawing(RENDERING, index, size)) for index in concepts()])
            self._drawn[size] = torch.from_numpy(cells.reshape(len(cells), size * size, 4)).short().to(self.device)
            side = torch.arange(size, device=self.device)
            self._offsets[size] = (side[:, None] * SIZE + side).flatten()
        self._grounds: dict[Background, torch.Tensor] = {}

    def _ground(self, background: Background) -> torch.Tensor:
        if background not in self._grounds:
            self._grounds[background] = torch.from_numpy(np.array(paint_background(background))).view(-1, 3).to(self.device)
        return self._grounds[background]

    def __call__(self, scenes: Sequence[Scene]) -> torch.Tensor:
        canvas = torch.stack([self._ground(scene.background) for scene in scenes])
        flat = canvas.view(-1, 3)
        for k in range(max(len(scene.things) for scene in scenes)):  # a later thing lies on an earlier one
            for size in SIZES:
                found = [(i, scene.things[k]) for i, scene in enumerate(scenes) if len(scene.things) > k and scene.things[k].size == size]
                if not found:
                    continue
                corners = [i * SIZE * SIZE + (t.y - size // 2) * SIZE + t.x - size // 2 for i, t in found]
                where = torch.tensor(corners, device=self.device)[:, None] + self._offsets[size]
                drawn = self._drawn[size][torch.tensor([self._row[t.concept] for _, t in found], device=self.device)]
                colour, alpha = drawn[..., :3].int(), drawn[..., 3:].int()
                # PIL's division by 255, which rounds in integers.
                mixed = colour * alpha + flat[where].int() * (255 - alpha) + 128
                flat[where] = (((mixed >> 8) + mixed) >> 8).to(torch.uint8)
        return canvas.view(len(scenes), SIZE, SIZE, 3)
