"""What the load has to know of an HTTP/1 response: its status, and how long the body is."""

from libc.string cimport memchr, memcmp
from posix.strings cimport strncasecmp

from fastsock.bench cimport _calls

cdef enum:
    SHORTEST = 13  # "HTTP/1.1 200\r"
    LONGEST_NUMBER = 18  # digits, which a long long holds


cdef inline bint _is_digit(char byte) noexcept nogil:
    return c'0' <= byte <= c'9'


cdef size_t header_size(const char *text, size_t size) noexcept nogil:
    """Bytes up to the end of the empty line; 0 if that has not come yet."""
    cdef const char *end = <const char *> _calls.memmem(text, size, b"\r\n\r\n", 4)
    return 0 if end == NULL else <size_t> (end - text) + 4


cdef int read_header(const char *text, size_t size, long long *length) noexcept nogil:
    """The status, or -1 if this is no header that ends with its empty line.

    ``length`` becomes that of Content-Length, or -1 without one. A chunked body is not understood.
    """
    cdef const char *line = text
    cdef const char *end = text + size - 2  # of the last line that is not empty
    cdef const char *line_end
    cdef const char *colon
    cdef long long number
    cdef int status
    length[0] = -1
    if size < SHORTEST + 3 or memcmp(text, b"HTTP/1.", 7) or not _is_digit(text[7]):
        return -1
    if text[8] != c' ' or (text[12] != c' ' and text[12] != c'\r'):
        return -1
    if not (_is_digit(text[9]) and _is_digit(text[10]) and _is_digit(text[11])):
        return -1
    status = (text[9] - c'0') * 100 + (text[10] - c'0') * 10 + (text[11] - c'0')
    line = <const char *> memchr(text, c'\n', size) + 1
    while line < end:
        line_end = <const char *> memchr(line, c'\r', end - line + 1)
        if line_end == NULL or line_end[1] != c'\n':
            return -1
        colon = <const char *> memchr(line, c':', line_end - line)
        if colon == NULL or colon == line:
            return -1
        if colon - line == 14 and not strncasecmp(line, b"content-length", 14):
            number = _number(colon + 1, line_end)
            if number < 0 or (length[0] >= 0 and length[0] != number):
                return -1
            length[0] = number
        elif colon - line == 17 and not strncasecmp(line, b"transfer-encoding", 17):
            return -1
        line = line_end + 2
    return status


cdef long long _number(const char *text, const char *end) noexcept nogil:
    """Digits with spaces around them; -1 if it is something else."""
    cdef long long number = 0
    cdef int digits = 0
    while text < end and (text[0] == c' ' or text[0] == c'\t'):
        text += 1
    while text < end and _is_digit(text[0]):
        digits += 1
        if digits > LONGEST_NUMBER:
            return -1
        number = number * 10 + (text[0] - c'0')
        text += 1
    while text < end and (text[0] == c' ' or text[0] == c'\t'):
        text += 1
    return number if digits and text == end else -1
