"""What is done with activations over a pass of images, and the tables it gives."""
