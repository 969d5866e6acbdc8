/* The compiled twin of contexts.py and bytemodel.py: the same integers in, the same bytes out, 100 times faster.
 *
 * Plain C99 over CPython's stable interface (3.11+): this file is the door, _mixture.h the coder (arithmetic.py), and
 * _weights.h and _bytes.h the two models. Nothing is floating point, so every platform decodes alike. Right shifts of
 * negative numbers are arithmetic, as in every compiler CPython builds with, and as Python's own.
 *
 * Hostile input: reads past the end give padding and are counted, indices come from clamped values only, and a decoder
 * stops once it ran past the end, so its time is bounded by the size the caller allowed.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_bytes.h"
#include "_mixture.h"
#include "_weights.h"

/* Raised with every change that kernel.py must know of: a kernel built from older source is left unused. */
#define INTERFACE 2
#define LONGEST_PRIMER (1 << 20)

static int tables_fit(const Py_buffer *tables) {
    if (tables->len == TABLE_SIZE * (Py_ssize_t)sizeof(int32_t)) return 1;
    PyErr_SetString(PyExc_ValueError, "kernel: tables of another version");
    return 0;
}

/* The number of values in all matrices, or -1 with an error set. */
static int64_t shapes_fit(const Py_buffer *shapes) {
    const int64_t *shape = shapes->buf, most = PY_SSIZE_T_MAX / 16;
    int64_t total = 0;
    int fine = shapes->len % (SHAPE * 8) == 0;
    for (Py_ssize_t i = 0; fine && i < shapes->len / (SHAPE * 8); i++, shape += SHAPE) {
        fine = shape[0] >= 0 && shape[1] >= 0 && shape[1] < most && shape[2] >= 1 && shape[2] < most && shape[3] >= 1 &&
               shape[3] < most && (shape[1] == 0 || shape[0] <= (most - total) / shape[1]);
        if (fine) total += shape[0] * shape[1];
    }
    if (fine) return total;
    PyErr_SetString(PyExc_ValueError, "kernel: impossible shapes");
    return -1;
}

static PyObject *answer(Range *range, int fine, PyObject *decoded) {
    if (fine < 0 || range->failed) {
        Py_XDECREF(decoded);
        return PyErr_NoMemory();
    }
    if (!range->decoding) return PyBytes_FromStringAndSize((const char *)range->out, (Py_ssize_t)range->length);
    if (fine && range_ended_well(range)) return decoded;
    Py_XDECREF(decoded);
    PyErr_SetString(PyExc_ValueError, "damaged stream");
    return NULL;
}

static PyObject *run_weights(PyObject *args, int decoding) {
    Py_buffer tables, data, shapes;
    int rate;
    PyObject *result = NULL, *decoded = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*i", &tables, &data, &shapes, &rate)) return NULL;
    int64_t count = shapes_fit(&shapes);
    int32_t *values = data.buf;
    Weights *self = NULL;
    if (count < 0 || !tables_fit(&tables)) goto done;
    if (!decoding && data.len != count * 4) {
        PyErr_SetString(PyExc_ValueError, "kernel: values do not fit shapes");
        goto done;
    }
    if (rate < 0 || rate > 255) {
        PyErr_SetString(PyExc_ValueError, "kernel: impossible rate");
        goto done;
    }
    if (decoding) {
        decoded = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count * 4);
        if (!decoded) goto done;
        values = (int32_t *)PyBytes_AsString(decoded);
    }
    self = calloc(1, sizeof *self);
    if (!self) {
        Py_XDECREF(decoded);
        PyErr_NoMemory();
        goto done;
    }
    range_open(&self->mixer.range, decoding ? data.buf : NULL, decoding ? (size_t)data.len : 0, decoding);
    int fine;
    Py_BEGIN_ALLOW_THREADS fine =
        code_weights(self, tables.buf, values, shapes.buf, (size_t)shapes.len / (SHAPE * 8), rate);
    Py_END_ALLOW_THREADS result = answer(&self->mixer.range, fine, decoded);
done:
    if (self) {
        mixer_close(&self->mixer);
        free(self);
    }
    PyBuffer_Release(&tables);
    PyBuffer_Release(&data);
    PyBuffer_Release(&shapes);
    return result;
}

static PyObject *run_text(PyObject *args, int decoding) {
    Py_buffer tables, data, primer;
    Py_ssize_t count, stride;
    PyObject *result = NULL, *work = NULL, *decoded = NULL;
    if (!PyArg_ParseTuple(args, "y*y*nny*", &tables, &data, &count, &stride, &primer)) return NULL;
    Text *self = NULL;
    if (!tables_fit(&tables)) goto done;
    if (count < 0 || primer.len > LONGEST_PRIMER || count > INT32_MAX - LONGEST_PRIMER || stride < 1 ||
        (!decoding && count != data.len)) {
        PyErr_SetString(PyExc_ValueError, "kernel: impossible size");
        goto done;
    }
    /* The encoder too works on a copy: the model writes each byte back. */
    work = PyBytes_FromStringAndSize(NULL, primer.len + count);
    self = calloc(1, sizeof *self);
    if (!work || !self) {
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *bytes = (uint8_t *)PyBytes_AsString(work);
    memcpy(bytes, primer.buf, (size_t)primer.len);
    if (decoding) memset(bytes + primer.len, 0, (size_t)count);
    else memcpy(bytes + primer.len, data.buf, (size_t)count);
    range_open(&self->mixer.range, decoding ? data.buf : NULL, decoding ? (size_t)data.len : 0, decoding);
    int fine;
    size_t known = (size_t)primer.len;
    Py_BEGIN_ALLOW_THREADS fine = code_text(self, tables.buf, bytes, known, known + (size_t)count, (size_t)stride);
    Py_END_ALLOW_THREADS if (decoding && fine > 0) {
        decoded = PyBytes_FromStringAndSize((const char *)bytes + known, count);
        if (!decoded) goto done;
    }
    result = answer(&self->mixer.range, fine, decoded);
done:
    Py_XDECREF(work);
    if (self) {
        mixer_close(&self->mixer);
        free(self->histories);
        free(self);
    }
    PyBuffer_Release(&tables);
    PyBuffer_Release(&data);
    PyBuffer_Release(&primer);
    return result;
}

static PyObject *encode_weights(PyObject *module, PyObject *args) {
    (void)module;
    return run_weights(args, 0);
}
static PyObject *decode_weights(PyObject *module, PyObject *args) {
    (void)module;
    return run_weights(args, 1);
}
static PyObject *encode_bytes(PyObject *module, PyObject *args) {
    (void)module;
    return run_text(args, 0);
}
static PyObject *decode_bytes(PyObject *module, PyObject *args) {
    (void)module;
    return run_text(args, 1);
}

static PyMethodDef methods[] = {
    {"encode_weights", encode_weights, METH_VARARGS, "(tables, values, shapes, rate) -> bytes"},
    {"decode_weights", decode_weights, METH_VARARGS, "(tables, data, shapes, rate) -> bytes of int32"},
    {"encode_bytes", encode_bytes, METH_VARARGS, "(tables, data, count, stride, primer) -> bytes"},
    {"decode_bytes", decode_bytes, METH_VARARGS, "(tables, data, count, stride, primer) -> bytes"},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Compiled twin of the adaptive coder.", -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kernel(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
