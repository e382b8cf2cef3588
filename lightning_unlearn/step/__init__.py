"""From a model to one without the samples: the step, the noise, the release."""
