# Nothing of this module can be called from Python: _core cimports it.
