"""Looking into a model: detectors, attacks, the basin, transitions, and what makes a memorized prompt switch on."""
