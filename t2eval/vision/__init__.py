"""Vision: pictures from data sets, their features as the model reads them, and questions about them."""
