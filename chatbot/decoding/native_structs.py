"""Structures of the compiled library (chatbot/native/step.c), field by field in the same order."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int64, c_void_p


class Matrix(ctypes.Structure):
    """`Matrix` of step.c."""

    _fields_ = [
        ("weight", c_void_p),
        ("packed", c_void_p),
        ("scale", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("stride", c_int64),
    ]


class Layer(ctypes.Structure):
    """`Layer` of step.c."""

    _fields_ = [
        ("kind", c_int64),
        ("norm", c_void_p),
        ("norm_bias", c_void_p),
        ("norm2", c_void_p),
        ("norm2_bias", c_void_p),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate", Matrix),
        ("output_gate", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("conv", c_void_p),
        ("rate", c_void_p),
    ]


class State(ctypes.Structure):
    """`State` of step.c: the states of all rows in one layer."""

    _fields_ = [
        ("recurrent", c_void_p),
        ("normalizer", c_void_p),
        ("inputs", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("latent", c_void_p),
        ("hidden", c_void_p),
    ]


class Network(ctypes.Structure):
    """`Model` of step.c."""

    _fields_ = [
        ("layers", c_int64),
        ("width", c_int64),
        ("heads", c_int64),
        ("head", c_int64),
        ("inner", c_int64),
        ("window", c_int64),
        ("taps", c_int64),
        ("activation", c_int64),
        ("rotates", c_int64),
        ("rotates_linear", c_int64),
        ("eps", c_float),
        ("theta", c_float),
        ("tokens", c_void_p),
        ("speakers", c_void_p),
        ("positions", c_void_p),
        ("norm", c_void_p),
        ("norm_bias", c_void_p),
        ("head_matrix", Matrix),
        ("layer", POINTER(Layer)),
        ("token_scales", c_void_p),
    ]
