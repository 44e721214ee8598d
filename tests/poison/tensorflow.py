"""First on the path of the tests' processes: training and sampling work without TensorFlow.

Not an ImportError, which a `try` around the import would swallow.
"""

raise AssertionError("TensorFlow was imported")
