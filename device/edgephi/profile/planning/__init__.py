"""From a model and a device to a plan: memory and speed predicted, options compared, remedies found."""
