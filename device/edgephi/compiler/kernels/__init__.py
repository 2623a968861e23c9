"""The kernels: TensorIR written in Python, one kernel a file, each with the NumPy twin that says what it means."""
