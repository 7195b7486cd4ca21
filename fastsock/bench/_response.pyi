# Nothing of this module can be called from Python: _load_streams cimports it.
