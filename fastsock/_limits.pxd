from fastsock._ledger cimport Ledger


cdef bint unlimited(object server, unsigned int looked) except -1
cdef object refusal(object server, Ledger ledger, object peer)
cdef object gate_of(object server, Ledger ledger)


cdef class Gate:
    cdef Ledger ledger

    cdef bint lasts(self, object server) except -1
