/* Convolution by 3 x 3 x 3 weights with Winograd's minimal filtering: blocks of 2 x 4 x 4 outputs from 4 x 6 x 6 inputs by
 * 144 products a pair of channels, where 864 are written down (Winograd 1980; Lavin and Gray, CVPR 2016).
 *
 * Arrays are float32; images are channels-last (I, J, K, C), zero beyond the border; weights are transformed before,
 * (144, C, O). Both C and O are at least 8.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define TILES 12     /* blocks of outputs that are computed at once: their inputs and products stay in the cache */
#define ROWS 6       /* of them, how many keep two vectors of output channels in the registers; divides TILES */
#define WIDTH 8      /* channels in a vector */
#define PLACES 144   /* of a block's inputs, 4 x 6 x 6 */
#define MOST_CHANNELS 128
#define INLINE static inline __attribute__((always_inline))

typedef ptrdiff_t index_t;
typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));

static const float zeros[MOST_CHANNELS];

/* Transform six inputs of a line, `step` apart. */
INLINE void transform_line(const Vector *line, int step, Vector out[6]) {
    const Vector d0 = line[0], d1 = line[step], d2 = line[2 * step];
    const Vector d3 = line[3 * step], d4 = line[4 * step], d5 = line[5 * step];
    const Vector a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
    out[0] = 4 * d0 - 5 * d2 + d4, out[1] = a + b, out[2] = a - b;
    out[3] = c + e, out[4] = c - e, out[5] = 4 * d1 - 5 * d3 + d5;
}

/* Sum up six products of a line, `step` apart, to four outputs. */
INLINE void sum_line(const Vector *line, int step, Vector out[4]) {
    const Vector a = line[step] + line[2 * step], b = line[step] - line[2 * step];
    const Vector c = line[3 * step] + line[4 * step], e = line[3 * step] - line[4 * step];
    out[0] = line[0] + a + c, out[1] = b + 2 * e, out[2] = a + 4 * c, out[3] = b + 8 * e + line[5 * step];
}

/* Transform the inputs of 8 channels, and put each where the products of its place are made. */
INLINE void transform_inputs(const float *const *voxels, index_t channel, float *to, index_t step) {
    Vector d[4][6][6], line[6];
    for (int n = 0; n < 36; n++) {
        const Vector p = *(const Vector *)(voxels[n] + channel), q = *(const Vector *)(voxels[n + 36] + channel);
        const Vector r = *(const Vector *)(voxels[n + 72] + channel), s = *(const Vector *)(voxels[n + 108] + channel);
        (&d[0][0][0])[n] = p - r, (&d[1][0][0])[n] = q + r, (&d[2][0][0])[n] = r - q, (&d[3][0][0])[n] = q - s;
    }
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 6; k++) {
            transform_line(&d[i][0][k], 6, line);
            for (int j = 0; j < 6; j++) d[i][j][k] = line[j];
        }
        for (int j = 0; j < 6; j++) {
            transform_line(d[i][j], 1, line);
            for (int k = 0; k < 6; k++) *(Vector *)(to + ((i * 6 + j) * 6 + k) * step) = line[k];
        }
    }
}

/* Sum up the products of 8 output channels to 32 outputs. */
INLINE void transform_outputs(const float *from, index_t step, Vector out[32]) {
    Vector s[2][6][6], t[4][6], line[4];
    for (int n = 0; n < 36; n++) {
        const float *row = from + n * step;
        const Vector a = *(const Vector *)row, b = *(const Vector *)(row + 36 * step);
        const Vector c = *(const Vector *)(row + 72 * step), e = *(const Vector *)(row + 108 * step);
        (&s[0][0][0])[n] = a + b + c, (&s[1][0][0])[n] = b - c - e;
    }
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 6; k++) {
            sum_line(&s[i][0][k], 6, line);
            for (int j = 0; j < 4; j++) t[j][k] = line[j];
        }
        for (int j = 0; j < 4; j++) sum_line(t[j], 1, out + (i * 4 + j) * 4);
    }
}

/* Multiply rows of inputs by weights (channels, width), for one or two vectors of output channels. */
INLINE void multiply(
    const float *inputs, const float *weights, index_t channels, index_t width, float *out, const int vectors
) {
    Vector sums[ROWS][2] = {{{0}}};
    for (index_t c = 0; c < channels; c++) {
        Vector w[2];
        for (int v = 0; v < vectors; v++) w[v] = *(const Vector *)(weights + c * width + v * WIDTH);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < vectors; v++) sums[r][v] += inputs[r * channels + c] * w[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) *(Vector *)(out + r * width + v * WIDTH) = sums[r][v];
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
    const index_t rows = (size[1] + 3) / 4, columns = (size[2] + 3) / 4, blocks = rows * columns;
    const index_t step = TILES * channels, out_step = TILES * width;
    float *inputs = calloc((size_t)(PLACES * (step + out_step)), sizeof(float)), *products = inputs + PLACES * step;
    if (!inputs) return 1;
    for (index_t i = first; i < last; i++)
        for (index_t start = 0; start < blocks; start += TILES) {
            const index_t tiles = blocks - start < TILES ? blocks - start : TILES;
            for (index_t t = 0; t < tiles; t++) {
                const index_t x = 2 * i - 1, y = 4 * ((start + t) / columns) - 1, z = 4 * ((start + t) % columns) - 1;
                const float *voxels[PLACES];
                for (int n = 0; n < PLACES; n++) {
                    const index_t a = x + n / 36, b = y + n / 6 % 6, c = z + n % 6;
                    const int inside = a >= 0 && a < size[0] && b >= 0 && b < size[1] && c >= 0 && c < size[2];
                    voxels[n] = inside ? image + ((a * size[1] + b) * size[2] + c) * channels : zeros;
                }
                for (index_t c = 0; c < channels; c += WIDTH) {
                    const index_t channel = begin(c, WIDTH, channels);
                    transform_inputs(voxels, channel, inputs + t * channels + channel, step);
                }
            }
            for (index_t n = 0; n < PLACES; n++)
                for (index_t o = 0; o < width; o += 2 * WIDTH) {
                    const int is_single = width - o <= WIDTH;
                    const index_t channel = begin(o, is_single ? WIDTH : 2 * WIDTH, width);
                    const float *from = inputs + n * step, *w = weights + n * channels * width + channel;
                    float *to = products + n * out_step + channel;
                    for (index_t t = 0; t < tiles; t += ROWS) {
                        if (is_single) multiply(from + t * channels, w, channels, width, to + t * width, 1);
                        else multiply(from + t * channels, w, channels, width, to + t * width, 2);
                    }
                }
            for (index_t t = 0; t < tiles; t++)
                for (index_t o = 0; o < width; o += WIDTH) {
                    const index_t channel = begin(o, WIDTH, width);
                    const index_t y = 4 * ((start + t) / columns), z = 4 * ((start + t) % columns);
                    Vector results[32];
                    transform_outputs(products + t * width + channel, out_step, results);
                    for (int n = 0; n < 32; n++) {
                        const index_t a = 2 * i + (n >> 4), b = y + (n >> 2 & 3), c = z + (n & 3);
                        if (a >= size[0] || b >= size[1] || c >= size[2]) continue;
                        *(Vector *)(out + ((a * size[1] + b) * size[2] + c) * width + channel) = results[n];
                    }
                }
        }
    free(inputs);
    return 0;
}
