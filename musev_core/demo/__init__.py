"""The demo: a small trained model inside the package, and the films it makes."""
