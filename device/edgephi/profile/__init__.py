"""The device: what it is (``probe``), and which instruction-set levels it can run (``isa``)."""
