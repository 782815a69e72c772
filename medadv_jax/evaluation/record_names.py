"""Names of records that rooms share; imports nothing, so that the report needs no JAX."""

ELSEWHERE = "elsewhere.json"  # results on images of other data sets
# Of data with several labels an image.
LABEL_PREDICTIONS, LABEL_RESULTS = "label_predictions.parquet", "label_results.csv"
