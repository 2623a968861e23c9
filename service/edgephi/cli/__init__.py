"""What a person types: the ``edgephi`` command, one file per command, and the composition root they share."""
