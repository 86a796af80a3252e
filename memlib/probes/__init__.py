"""Looking into a model. Each probe takes prompts under an experiment (`memlib.experiment.group.Group`) and keeps what it measures in their store.

| module | the question |
|---|---|
| `detectors/` | is this prompt memorized, before any picture is made, and how well do such scores tell? one file a detector |
| `attack/` | can an embedding still bring a training picture up, whatever was done to hide it? |
| `triggers`, `locality` | how far apart are embeddings that bring up one picture, and do they use the same weights? |
| `token_significance` | which tokens does the prompt's pull hang on? |
| `transitions`, `pull` | how strong is the prompt's pull step by step, and where does it turn? (traces; transition points) |
| `switch_on`, `flips` | from which step on must guidance act for the picture to be a copy, and does the trace predict it? |
| `basin`, `basin_width` | from how far away do latents still end in the training picture, and how does that change with the step? |
| `reproduced` | which prompts does a MiniSD reproduce, and how well does it draw others? |
"""
