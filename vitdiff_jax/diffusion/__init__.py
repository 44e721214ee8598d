"""The diffusion process as pure functions on arrays; knows neither networks nor data."""
