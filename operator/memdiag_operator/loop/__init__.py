"""When things happen: each event and a sweep end in the same look at a diagnosis. Knows neither kopf nor kubernetes."""
