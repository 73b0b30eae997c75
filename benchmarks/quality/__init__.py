"""What an adapter learned, measured: is it the new style, and is it still the thing that was asked for?"""
