"""BN-Inception, the backbone of most published deep metric learning tables, as a table of branch widths."""

from torch import cat, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

# block: (1x1, (reduce, 3x3), (reduce, double 3x3), projection of the pooled input); a block without 1x1 halves the map
BLOCKS = {
    "3a": (64, (64, 64), (64, 96), 32),
    "3b": (64, (64, 96), (64, 96), 64),
    "3c": (0, (128, 160), (64, 96), 0),
    "4a": (224, (64, 96), (96, 128), 128),
    "4b": (192, (96, 128), (96, 128), 128),
    "4c": (160, (128, 160), (128, 160), 128),
    "4d": (96, (128, 192), (160, 192), 128),
    "4e": (0, (128, 192), (192, 256), 0),
    "5a": (352, (192, 320), (160, 224), 128),
    "5b": (352, (192, 320), (192, 224), 128),
}


class BNInception(nn.Module):
    """Images (B, 3, H, W), BGR in 0..255 less the mean (104, 117, 128) → maps (B, 1024, H/32, W/32).

    H and W are multiples of 32. Its keys are those of the weights converted from Caffe, bn_inception-52deb4733.pth.
    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    def __init__(self):
        super().__init__()
        self.add("conv1_7x7_s2", 3, 64, 7, 2)
        self.add("conv2_3x3_reduce", 64, 64, 1)
        self.add("conv2_3x3", 64, 192, 3)
        width = 192
        for block, (single, (reduce, triple), (reduce_double, double), projection) in BLOCKS.items():
            name, stride = f"inception_{block}_", 1 if single else 2
            if single:
                self.add(name + "1x1", width, single, 1)
            self.add(name + "3x3_reduce", width, reduce, 1)
            self.add(name + "3x3", reduce, triple, 3, stride)
            self.add(name + "double_3x3_reduce", width, reduce_double, 1)
            self.add(name + "double_3x3_1", reduce_double, double, 3)
            self.add(name + "double_3x3_2", double, double, 3, stride)
            if projection:
                self.add(name + "pool_proj", width, projection, 1)
            width = single + triple + double + (projection or width)

    def add(self, name, channels, width, kernel, stride=1):
        self.add_module(name, nn.Conv2d(channels, width, kernel, stride, kernel // 2))  # with a bias, as the weights
        self.add_module(name + "_bn", nn.BatchNorm2d(width))

    def unit(self, x, *names):
        """Convolution, BatchNorm and ReLU of each name in turn."""
        for name in names:
            x = relu(getattr(self, name + "_bn")(getattr(self, name)(x)), inplace=True)
        return x

    def block(self, block, x):
        name, halves = f"inception_{block}_", not BLOCKS[block][0]
        triple = self.unit(x, name + "3x3_reduce", name + "3x3")
        double = self.unit(x, name + "double_3x3_reduce", name + "double_3x3_1", name + "double_3x3_2")
        if halves:
            return cat([triple, double, max_pool2d(x, 3, 2, ceil_mode=True)], 1)
        pooled = max_pool2d(x, 3, 1, 1) if block == "5b" else avg_pool2d(x, 3, 1, 1)
        return cat([self.unit(x, name + "1x1"), triple, double, self.unit(pooled, name + "pool_proj")], 1)

    def forward(self, images):
        x = max_pool2d(self.unit(images, "conv1_7x7_s2"), 3, 2, ceil_mode=True)
        x = max_pool2d(self.unit(x, "conv2_3x3_reduce", "conv2_3x3"), 3, 2, ceil_mode=True)
        for block in BLOCKS:
            x = self.block(block, x)
        return x
