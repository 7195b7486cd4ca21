"""Timers: a binary heap of what has a deadline.

A deadline that is put off stays where it is until it is due: a connection with a timeout moves its
own with every message.
"""

from fastsock._clock cimport NEVER


cdef class Timed:
    """What may have a deadline."""

    def __cinit__(self):
        self.place = -1
        self.deadline = NEVER


cdef class Timers:
    """Those that have one, the first to be due on top."""

    def __cinit__(self):
        self.heap = []

    cdef int set(self, Timed task) except -1:
        cdef list heap = self.heap
        cdef Py_ssize_t place, parent
        cdef Timed other
        if task.place >= 0:
            if task.due <= task.deadline:
                return 0
            place = task.place
        else:
            place = len(heap)
            heap.append(task)
        task.due = task.deadline
        while place > 0:
            parent = (place - 1) >> 1
            other = <Timed> heap[parent]
            if other.due <= task.due:
                break
            heap[place] = other
            other.place = place
            place = parent
        heap[place] = task
        task.place = place
        return 0

    cdef void drop(self, Timed task) noexcept:
        cdef list heap = self.heap
        cdef Py_ssize_t place = task.place, child, parent, size
        cdef Timed last, other
        if place < 0:
            return
        task.place = -1
        last = <Timed> heap.pop()
        if last is task:
            return
        size = len(heap)
        while True:  # down
            child = 2 * place + 1
            if child >= size:
                break
            if child + 1 < size and (<Timed> heap[child + 1]).due < (<Timed> heap[child]).due:
                child += 1
            other = <Timed> heap[child]
            if other.due >= last.due:
                break
            heap[place] = other
            other.place = place
            place = child
        while place > 0:  # up
            parent = (place - 1) >> 1
            other = <Timed> heap[parent]
            if other.due <= last.due:
                break
            heap[place] = other
            other.place = place
            place = parent
        heap[place] = last
        last.place = place
