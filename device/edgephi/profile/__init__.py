"""
The device: what it is and allows (``machine``), boards that are known (``boards``), what it takes on (``planning``).

Here are the words that these share (``plan``, ``model_facts``, ``speed``), measurements of this machine
(``calibration``, ``fit``, ``regressions``) and what happens while a server runs (``verification``, ``governor``).
"""
