# Nothing of this module can be called from Python: _channel and _worker cimport it.
