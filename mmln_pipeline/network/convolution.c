/* Convolution by 3 x 3 x 3 weights with Winograd's minimal filtering: blocks of 2 x 2 x 2 outputs from 4 x 4 x 4 inputs by
 * 64 products a pair of channels, where 216 are written down (Winograd 1980; Lavin and Gray, CVPR 2016).
 *
 * Arrays are float32; images are channels-last (I, J, K, C), zero beyond the border; weights are transformed before,
 * (64, C, O). Both C and O are at least 16.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define TILES 12     /* blocks of outputs that are computed at once: their inputs and products stay in the cache */
#define ROWS 6       /* of them, how many keep two vectors of output channels in the registers; divides TILES */
#define WIDTH 8      /* channels in a vector */
#define MOST_CHANNELS 128
#define INLINE static inline __attribute__((always_inline))

typedef ptrdiff_t index_t;
typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));

static const float zeros[MOST_CHANNELS];

/* Transform 64 inputs of 8 channels, and put each where the products of its place are made. */
INLINE void transform_inputs(const float *const *voxels, index_t channel, float *to, index_t step) {
    Vector d[4][4][4];
    for (int n = 0; n < 64; n++) (&d[0][0][0])[n] = *(const Vector *)(voxels[n] + channel);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            Vector *p = d[i][j];
            const Vector a = p[0] - p[2], b = p[1] + p[2], c = p[2] - p[1], e = p[1] - p[3];
            p[0] = a, p[1] = b, p[2] = c, p[3] = e;
        }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            const Vector a = d[i][0][k] - d[i][2][k], b = d[i][1][k] + d[i][2][k];
            const Vector c = d[i][2][k] - d[i][1][k], e = d[i][1][k] - d[i][3][k];
            d[i][0][k] = a, d[i][1][k] = b, d[i][2][k] = c, d[i][3][k] = e;
        }
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 4; k++) {
            float *row = to + (j * 4 + k) * step;
            *(Vector *)row = d[0][j][k] - d[2][j][k];
            *(Vector *)(row + 16 * step) = d[1][j][k] + d[2][j][k];
            *(Vector *)(row + 32 * step) = d[2][j][k] - d[1][j][k];
            *(Vector *)(row + 48 * step) = d[1][j][k] - d[3][j][k];
        }
}

/* Sum up the 64 products of 8 output channels to 8 outputs. */
INLINE void transform_outputs(const float *from, index_t step, Vector out[8]) {
    Vector s[2][4][4], t[2][2][4];
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 4; k++) {
            const float *row = from + (j * 4 + k) * step;
            const Vector a = *(const Vector *)row, b = *(const Vector *)(row + 16 * step);
            const Vector c = *(const Vector *)(row + 32 * step), e = *(const Vector *)(row + 48 * step);
            s[0][j][k] = a + b + c, s[1][j][k] = b - c - e;
        }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 4; k++) {
            t[i][0][k] = s[i][0][k] + s[i][1][k] + s[i][2][k];
            t[i][1][k] = s[i][1][k] - s[i][2][k] - s[i][3][k];
        }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            out[4 * i + 2 * j] = t[i][j][0] + t[i][j][1] + t[i][j][2];
            out[4 * i + 2 * j + 1] = t[i][j][1] - t[i][j][2] - t[i][j][3];
        }
}

/* Multiply rows of inputs by weights (channels, width), for 16 output channels. */
INLINE void multiply(const float *inputs, const float *weights, index_t channels, index_t width, float *out) {
    Vector sums[ROWS][2] = {{{0}}};
    for (index_t c = 0; c < channels; c++) {
        const Vector low = *(const Vector *)(weights + c * width), high = *(const Vector *)(weights + c * width + WIDTH);
        for (int r = 0; r < ROWS; r++) {
            const float x = inputs[r * channels + c];
            sums[r][0] += x * low, sums[r][1] += x * high;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) *(Vector *)(out + r * width + v * WIDTH) = sums[r][v];
}

/* The first of `wide` channels, the last ones of which overlap those before. */
INLINE index_t begin(index_t channel, index_t wide, index_t channels) {
    return channel + wide <= channels ? channel : channels - wide;
}

/* Convolve an image by transformed weights, planes `first` to `last` - 1 of blocks. Returns 0, or 1 where memory is short. */
int convolve(
    const float *image, const index_t *size, index_t channels, const float *weights, index_t width, float *out,
    index_t first, index_t last
) {
    const index_t rows = (size[1] + 1) / 2, columns = (size[2] + 1) / 2, blocks = rows * columns;
    const index_t step = TILES * channels, out_step = TILES * width;
    float *inputs = malloc((size_t)(64 * (step + out_step)) * sizeof(float)), *products = inputs + 64 * step;
    if (!inputs) return 1;
    for (index_t i = first; i < last; i++)
        for (index_t start = 0; start < blocks; start += TILES) {
            const index_t tiles = blocks - start < TILES ? blocks - start : TILES;
            for (index_t t = 0; t < tiles; t++) {
                const index_t x = 2 * i - 1, y = 2 * ((start + t) / columns) - 1, z = 2 * ((start + t) % columns) - 1;
                const float *voxels[64];
                for (int n = 0; n < 64; n++) {
                    const index_t a = x + (n >> 4), b = y + (n >> 2 & 3), c = z + (n & 3);
                    const int inside = a >= 0 && a < size[0] && b >= 0 && b < size[1] && c >= 0 && c < size[2];
                    voxels[n] = inside ? image + ((a * size[1] + b) * size[2] + c) * channels : zeros;
                    for (int line = 0; n % 4 == 0 && line < 4; line++) /* what comes soon along the row */
                        __builtin_prefetch(voxels[n] + 8 * channels + 16 * line);
                }
                for (index_t c = 0; c < channels; c += WIDTH) {
                    const index_t channel = begin(c, WIDTH, channels);
                    transform_inputs(voxels, channel, inputs + t * channels + channel, step);
                }
            }
            for (index_t n = 0; n < 64; n++)
                for (index_t o = 0; o < width; o += 2 * WIDTH) {
                    const index_t channel = begin(o, 2 * WIDTH, width);
                    const float *w = weights + n * channels * width + channel;
                    for (index_t t = 0; t < tiles; t += ROWS)
                        multiply(inputs + n * step + t * channels, w, channels, width,
                                 products + n * out_step + t * width + channel);
                }
            for (index_t t = 0; t < tiles; t++)
                for (index_t o = 0; o < width; o += WIDTH) {
                    const index_t channel = begin(o, WIDTH, width);
                    const index_t y = 2 * ((start + t) / columns), z = 2 * ((start + t) % columns);
                    Vector results[8];
                    transform_outputs(products + t * width + channel, out_step, results);
                    for (int n = 0; n < 8; n++) {
                        const index_t a = 2 * i + (n >> 2), b = y + (n >> 1 & 1), c = z + (n & 1);
                        if (a >= size[0] || b >= size[1] || c >= size[2]) continue;
                        *(Vector *)(out + ((a * size[1] + b) * size[2] + c) * width + channel) = results[n];
                    }
                }
        }
    free(inputs);
    return 0;
}
