/* Passes over voxels that a CPU does at once instead of one operator after the other.
 *
 * Arrays are float32 and C-contiguous: images (C, I, J, K), displacements (3, I, J, K) in voxels, components in the order
 * of the axes. Every function works on the planes `first` to `last` - 1 of its output, so that threads share a call by
 * planes; what is scattered beyond them goes to a `slope` array of the caller's own, which it adds to.
 */
#include <math.h>
#include <stddef.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#define MOST_ROW 4096 /* voxels of the longest row that has room on the stack */

typedef ptrdiff_t index_t;

/* Where a row of samples lies along one axis: the voxel below, the share of the one above, whether they can move. */
typedef struct {
    int low[MOST_ROW];
    float share[MOST_ROW], moves[MOST_ROW];
    index_t stride, step; /* from voxel to voxel; to the one above, 0 where there is but one */
} Places;

/* Find the places of `count` positions, those outside on the border. */
INLINE void find_places(const float *position, index_t count, index_t size, index_t stride, Places *places) {
    const float last = (float)(size - 1);
    const int lowest_top = size > 1 ? (int)size - 2 : 0;
    places->stride = stride;
    places->step = size > 1 ? stride : 0;
    for (index_t k = 0; k < count; k++) {
        float p = position[k];
        places->moves[k] = p > 0 && p < last ? 1.0f : 0.0f;
        p = p > 0 ? p : 0; /* false of a NaN as well */
        p = p < last ? p : last;
        int low = (int)p;
        low = low < lowest_top ? low : lowest_top;
        places->share[k] = p - (float)low;
        places->low[k] = low;
    }
}

INLINE const float *corner_of(const float *v, const Places *at, index_t k) {
    return v + at[0].low[k] * at[0].stride + at[1].low[k] * at[1].stride + at[2].low[k];
}

/* The value of an image at the k-th place of a row. */
INLINE float interpolate(const float *v, const Places *at, index_t k) {
    const float fx = at[0].share[k], fy = at[1].share[k], fz = at[2].share[k];
    const index_t y = at[1].step, z = at[2].step;
    const float *a = corner_of(v, at, k), *b = a + at[0].step;
    const float a0 = a[0] + fz * (a[z] - a[0]), a1 = a[y] + fz * (a[y + z] - a[y]);
    const float b0 = b[0] + fz * (b[z] - b[0]), b1 = b[y] + fz * (b[y + z] - b[y]);
    const float low = a0 + fy * (a1 - a0), high = b0 + fy * (b1 - b0);
    return low + fx * (high - low);
}

/* Add `slope` times the derivatives of that value by the place to d[3]. */
INLINE void differentiate(const float *v, const Places *at, index_t k, float slope, float *d) {
    const float fx = at[0].share[k], fy = at[1].share[k], fz = at[2].share[k];
    const index_t y = at[1].step, z = at[2].step;
    const float *a = corner_of(v, at, k), *b = a + at[0].step;
    const float za0 = a[z] - a[0], za1 = a[y + z] - a[y], zb0 = b[z] - b[0], zb1 = b[y + z] - b[y];
    const float a0 = a[0] + fz * za0, a1 = a[y] + fz * za1, b0 = b[0] + fz * zb0, b1 = b[y] + fz * zb1;
    const float ya = a1 - a0, yb = b1 - b0, za = za0 + fy * (za1 - za0), zb = zb0 + fy * (zb1 - zb0);
    d[0] += slope * (b0 + fy * yb - a0 - fy * ya);
    d[1] += slope * (ya + fx * (yb - ya));
    d[2] += slope * (za + fx * (zb - za));
}

/* Add that value's slope to the voxels that it was interpolated from. */
INLINE void scatter(float *v, const Places *at, index_t k, float slope) {
    const float fx = at[0].share[k], fy = at[1].share[k], fz = at[2].share[k];
    const index_t y = at[1].step, z = at[2].step;
    float *a = (float *)corner_of(v, at, k), *b = a + at[0].step;
    const float high = slope * fx, low = slope - high;
    const float low1 = low * fy, low0 = low - low1, high1 = high * fy, high0 = high - high1;
    a[0] += low0 * (1 - fz);
    a[z] += low0 * fz;
    a[y] += low1 * (1 - fz);
    a[y + z] += low1 * fz;
    b[0] += high0 * (1 - fz);
    b[z] += high0 * fz;
    b[y] += high1 * (1 - fz);
    b[y + z] += high1 * fz;
}

/* Find the places of a row of `sample`. */
INLINE void find_row(
    const index_t *shape, const float *u, const index_t *size, const index_t *origin, index_t spacing, index_t i,
    index_t j, Places *at
) {
    const index_t n = size[0] * size[1] * size[2], strides[3] = {shape[1] * shape[2], shape[2], 1};
    const float x = (float)(i * spacing + origin[0]), y = (float)(j * spacing + origin[1]);
    float position[MOST_ROW];
    u += (i * size[1] + j) * size[2];
    for (index_t k = 0; k < size[2]; k++) position[k] = x + u[k];
    find_places(position, size[2], shape[0], strides[0], at);
    for (index_t k = 0; k < size[2]; k++) position[k] = y + u[n + k];
    find_places(position, size[2], shape[1], strides[1], at + 1);
    for (index_t k = 0; k < size[2]; k++) position[k] = (float)(k * spacing + origin[2]) + u[2 * n + k];
    find_places(position, size[2], shape[2], strides[2], at + 2);
}

/* out(x) = image(spacing x + origin + u(x)); positions outside take the nearest border voxel. */
void sample(
    const float *image, const index_t *shape, index_t channels, const float *u, const index_t *size,
    const index_t *origin, index_t spacing, float *out, index_t first, index_t last
) {
    const index_t voxels = shape[0] * shape[1] * shape[2], n = size[0] * size[1] * size[2];
    Places at[3];
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++) {
            find_row(shape, u, size, origin, spacing, i, j, at);
            float *row = out + (i * size[1] + j) * size[2];
            for (index_t c = 0; c < channels; c++)
                for (index_t k = 0; k < size[2]; k++) row[c * n + k] = interpolate(image + c * voxels, at, k);
        }
}

/* The slopes of `sample`: by u, and added to `image_slope`, where it is given, by the image. */
void sample_slope(
    const float *image, const index_t *shape, index_t channels, const float *u, const index_t *size,
    const index_t *origin, index_t spacing, const float *out_slope, float *u_slope, float *image_slope, index_t first,
    index_t last
) {
    const index_t voxels = shape[0] * shape[1] * shape[2], n = size[0] * size[1] * size[2];
    Places at[3];
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++) {
            find_row(shape, u, size, origin, spacing, i, j, at);
            const index_t row = (i * size[1] + j) * size[2];
            for (index_t k = 0; k < size[2]; k++) {
                float d[3] = {0, 0, 0};
                for (index_t c = 0; c < channels; c++) {
                    const float slope = out_slope[c * n + row + k];
                    differentiate(image + c * voxels, at, k, slope, d);
                    if (image_slope) scatter(image_slope + c * voxels, at, k, slope);
                }
                for (index_t axis = 0; axis < 3; axis++) u_slope[axis * n + row + k] = d[axis] * at[axis].moves[k];
            }
        }
}

/* The rows of a field next to row (i, j) of blocks towards the side (a, b), and what they count at that side's voxels,
 * in voxels of an image of twice the size. */
INLINE void find_quarters(const index_t *size, index_t i, index_t j, index_t corner, index_t rows[4], float share[4]) {
    const index_t near[2] = {i, j}, sides[2] = {corner >> 2, corner >> 1 & 1};
    index_t next[2];
    for (index_t axis = 0; axis < 2; axis++) {
        const index_t at = near[axis] + (sides[axis] ? 1 : -1);
        next[axis] = at < 0 || at >= size[axis] ? near[axis] : at;
    }
    rows[0] = (i * size[1] + j) * size[2], share[0] = 1.125f;
    rows[1] = (i * size[1] + next[1]) * size[2], share[1] = 0.375f;
    rows[2] = (next[0] * size[1] + j) * size[2], share[2] = 0.375f;
    rows[3] = (next[0] * size[1] + next[1]) * size[2], share[3] = 0.125f;
}

/* Find the places of a row of `sample_corners`. */
INLINE void find_corner_row(
    const index_t *shape, const float *u, const index_t *size, index_t i, index_t j, index_t corner,
    const index_t rows[4], const float share[4], Places *at
) {
    const index_t n = size[0] * size[1] * size[2], strides[3] = {shape[1] * shape[2], shape[2], 1};
    const index_t count = size[2], sides[3] = {corner >> 2, corner >> 1 & 1, corner & 1};
    const float start[3] = {(float)(2 * i + sides[0]), (float)(2 * j + sides[1]), (float)sides[2]};
    float padded[MOST_ROW + 2], position[MOST_ROW];
    float *line = padded + 1;
    const float *next = line + (sides[2] ? 1 : -1);
    for (index_t axis = 0; axis < 3; axis++) {
        const float *p = u + axis * n, step = axis == 2 ? 2.0f : 0.0f;
        for (index_t k = 0; k < count; k++)
            line[k] = share[0] * p[rows[0] + k] + share[1] * p[rows[1] + k] + share[2] * p[rows[2] + k]
                      + share[3] * p[rows[3] + k];
        line[-1] = line[0], line[count] = line[count - 1];
        for (index_t k = 0; k < count; k++) position[k] = start[axis] + step * (float)k + 0.75f * line[k] + 0.25f * next[k];
        find_places(position, count, shape[axis], strides[axis], at + axis);
    }
}

/* The samples of an image at corners of the blocks that make up a grid of half its size; see `warping.warp_corners`. */
void sample_corners(
    const float *image, const index_t *shape, const float *u, const index_t *size, const index_t *corners,
    index_t n_corners, float *out, index_t first, index_t last
) {
    const index_t n = size[0] * size[1] * size[2];
    index_t rows[4];
    float share[4];
    Places at[3];
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++)
            for (index_t s = 0; s < n_corners; s++) {
                find_quarters(size, i, j, corners[s], rows, share);
                find_corner_row(shape, u, size, i, j, corners[s], rows, share, at);
                float *row = out + s * n + (i * size[1] + j) * size[2];
                for (index_t k = 0; k < size[2]; k++) row[k] = interpolate(image, at, k);
            }
}

/* Add the slope of `sample_corners` by u to `u_slope`. */
void sample_corners_slope(
    const float *image, const index_t *shape, const float *u, const index_t *size, const index_t *corners,
    index_t n_corners, const float *out_slope, float *u_slope, index_t first, index_t last
) {
    const index_t n = size[0] * size[1] * size[2], count = size[2];
    index_t rows[4];
    float share[4], padded[3][MOST_ROW + 2], own[3][MOST_ROW];
    Places at[3];
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++)
            for (index_t s = 0; s < n_corners; s++) {
                find_quarters(size, i, j, corners[s], rows, share);
                find_corner_row(shape, u, size, i, j, corners[s], rows, share, at);
                const float *slopes = out_slope + s * n + (i * size[1] + j) * size[2];
                for (index_t k = 0; k < count; k++) {
                    float d[3] = {0, 0, 0};
                    differentiate(image, at, k, slopes[k], d);
                    for (index_t axis = 0; axis < 3; axis++) own[axis][k] = d[axis] * at[axis].moves[k];
                }
                const index_t side = corners[s] & 1 ? 1 : -1, border = side > 0 ? count - 1 : 0;
                for (index_t axis = 0; axis < 3; axis++) {
                    float *line = padded[axis] + 1;
                    for (index_t k = 0; k < count; k++) line[k] = 0.75f * own[axis][k];
                    line[-1] = line[count] = 0;
                    for (index_t k = 0; k < count; k++) line[k + side] += 0.25f * own[axis][k];
                    line[border] += line[border + side];
                    for (index_t p = 0; p < 4; p++) {
                        float *to = u_slope + axis * n + rows[p];
                        for (index_t k = 0; k < count; k++) to[k] += share[p] * line[k];
                    }
                }
            }
}

/* Add up the squared forward differences of a field (C, I, J, K), and add their slope to `slope`. */
double roughness(
    const float *field, const index_t *size, index_t channels, float *slope, index_t first, index_t last
) {
    const index_t strides[3] = {size[1] * size[2], size[2], 1}, n = size[0] * strides[0];
    double total = 0;
    for (index_t c = 0; c < channels; c++)
        for (index_t i = first; i < last; i++)
            for (index_t j = 0; j < size[1]; j++) {
                const index_t row = c * n + i * strides[0] + j * strides[1];
                const index_t counts[3] = {i + 1 < size[0] ? size[2] : 0, j + 1 < size[1] ? size[2] : 0, size[2] - 1};
                float sum = 0;
                for (index_t axis = 0; axis < 3; axis++) {
                    const float *low = field + row, *high = low + strides[axis];
                    float *low_slope = slope + row, *high_slope = low_slope + strides[axis];
                    float difference[MOST_ROW];
                    for (index_t k = 0; k < counts[axis]; k++) {
                        difference[k] = high[k] - low[k];
                        sum += difference[k] * difference[k];
                    }
                    for (index_t k = 0; k < counts[axis]; k++) low_slope[k] -= 2 * difference[k];
                    for (index_t k = 0; k < counts[axis]; k++) high_slope[k] += 2 * difference[k];
                }
                total += sum;
            }
    return total;
}

/* Add up log(J)^2, J by forward differences and not below `lowest`, and add its slope by u to `slope`. */
double log_volumes(
    const float *u, const index_t *size, float lowest, float *slope, index_t first, index_t last
) {
    const index_t strides[3] = {size[1] * size[2], size[2], 1}, n = size[0] * strides[0];
    double total = 0;
    float g[3][3][MOST_ROW], t[MOST_ROW]; /* differences of component c along the axis; 2 log(J) / J */
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++) {
            const index_t row = i * strides[0] + j * strides[1];
            const index_t counts[3] = {i + 1 < size[0] ? size[2] : 0, j + 1 < size[1] ? size[2] : 0, size[2] - 1};
            for (index_t c = 0; c < 3; c++)
                for (index_t axis = 0; axis < 3; axis++) {
                    const float *low = u + c * n + row, *high = low + strides[axis], one = c == axis ? 1.0f : 0.0f;
                    for (index_t k = 0; k < counts[axis]; k++) g[c][axis][k] = high[k] - low[k] + one;
                    for (index_t k = counts[axis]; k < size[2]; k++) g[c][axis][k] = one;
                }
            float sum = 0;
            for (index_t k = 0; k < size[2]; k++) {
                const float j_ = g[0][0][k] * (g[1][1][k] * g[2][2][k] - g[1][2][k] * g[2][1][k])
                                 + g[0][1][k] * (g[1][2][k] * g[2][0][k] - g[1][0][k] * g[2][2][k])
                                 + g[0][2][k] * (g[1][0][k] * g[2][1][k] - g[1][1][k] * g[2][0][k]);
                t[k] = j_;
            }
            for (index_t k = 0; k < size[2]; k++) {
                const float log_j = logf(t[k] < lowest ? lowest : t[k]);
                sum += log_j * log_j;
                t[k] = t[k] < lowest ? 0 : 2 * log_j / t[k];
            }
            for (index_t c = 0; c < 3; c++)
                for (index_t axis = 0; axis < 3; axis++) {
                    const index_t d = (c + 1) % 3, e = (c + 2) % 3, p = (axis + 1) % 3, q = (axis + 2) % 3;
                    float *low = slope + c * n + row, *high = low + strides[axis], cofactor[MOST_ROW];
                    for (index_t k = 0; k < counts[axis]; k++)
                        cofactor[k] = t[k] * (g[d][p][k] * g[e][q][k] - g[d][q][k] * g[e][p][k]);
                    for (index_t k = 0; k < counts[axis]; k++) low[k] -= cofactor[k];
                    for (index_t k = 0; k < counts[axis]; k++) high[k] += cofactor[k];
                }
            total += sum;
        }
    return total;
}

INLINE float triple_product(const float a[3], const float b[3], const float c[3]) {
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
}

/* The inverted volume of every cell and its smallest determinant, both (I-1, J-1, K-1); see `jacobian.cell_volumes`. */
void cell_volumes(
    const float *u, const index_t *size, float *inverted, float *smallest, index_t first, index_t last
) {
    const index_t n = size[0] * size[1] * size[2], cells = size[2] - 1;
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1] - 1; j++) {
            const float *rows[2][2];
            for (index_t a = 0; a < 2; a++)
                for (index_t b = 0; b < 2; b++) rows[a][b] = u + ((i + a) * size[1] + j + b) * size[2];
            float *inverted_row = inverted + (i * (size[1] - 1) + j) * cells;
            float *smallest_row = smallest + (i * (size[1] - 1) + j) * cells;
            for (index_t k = 0; k < cells; k++) {
                float at[2][2][2][3], volumes[10];
                for (int a = 0; a < 2; a++)
                    for (int b = 0; b < 2; b++)
                        for (int c = 0; c < 2; c++)
                            for (int axis = 0; axis < 3; axis++)
                                at[a][b][c][axis] = rows[a][b][axis * n + k + c]
                                                    + (axis == 0 ? (float)a : axis == 1 ? (float)b : (float)c);
                for (int a = 0; a < 2; a++) /* the tetrahedron at each corner, spanned by its three edges */
                    for (int b = 0; b < 2; b++)
                        for (int c = 0; c < 2; c++) {
                            float x[3], y[3], z[3];
                            for (int axis = 0; axis < 3; axis++) {
                                x[axis] = at[1][b][c][axis] - at[0][b][c][axis];
                                y[axis] = at[a][1][c][axis] - at[a][0][c][axis];
                                z[axis] = at[a][b][1][axis] - at[a][b][0][axis];
                            }
                            volumes[4 * a + 2 * b + c] = triple_product(x, y, z);
                        }
                for (int a = 0; a < 2; a++) { /* the middle tetrahedron of either way to cut the cell */
                    float x[3], y[3], z[3];
                    for (int axis = 0; axis < 3; axis++) {
                        const float apex = at[a][a][a][axis], sign = a ? -1.0f : 1.0f;
                        x[axis] = sign * (at[a][1 - a][1 - a][axis] - apex);
                        y[axis] = sign * (at[1 - a][a][1 - a][axis] - apex);
                        z[axis] = sign * (at[1 - a][1 - a][a][axis] - apex);
                    }
                    volumes[8 + a] = triple_product(x, y, z);
                }
                float least = 0.5f * (volumes[8] < volumes[9] ? volumes[8] : volumes[9]), all = 0, below = 0;
                for (int v = 0; v < 8; v++) least = volumes[v] < least ? volumes[v] : least;
                for (int v = 0; v < 10; v++) {
                    all += volumes[v];
                    below += volumes[v] < 0 ? -volumes[v] : 0;
                }
                inverted_row[k] = all != all ? all : below / 12;
                smallest_row[k] = all != all ? all : least;
            }
        }
}

/* Add up w, w a, w b, w a a, w b b and w a b over planes of two images; w is 1, or, if asked, where either is above 0. */
void correlation_sums(
    const float *a, const float *b, index_t plane, index_t either, double *sums, index_t first, index_t last
) {
    for (index_t i = first; i < last; i++) {
        const float *p = a + i * plane, *q = b + i * plane;
        float w_ = 0, a_ = 0, b_ = 0, aa = 0, bb = 0, ab = 0;
        for (index_t k = 0; k < plane; k++) {
            const float w = !either || p[k] > 0 || q[k] > 0 ? 1.0f : 0.0f, wa = w * p[k], wb = w * q[k];
            w_ += w, a_ += wa, b_ += wb, aa += wa * p[k], bb += wb * q[k], ab += wa * q[k];
        }
        const float parts[6] = {w_, a_, b_, aa, bb, ab};
        for (int n = 0; n < 6; n++) sums[6 * i + n] = parts[n];
    }
}

/* slope = w (by_a a + by_b b + constant), w as above. */
void correlation_slope(
    const float *a, const float *b, index_t plane, index_t either, float by_a, float by_b, float constant, float *slope,
    index_t first, index_t last
) {
    for (index_t k = first * plane; k < last * plane; k++) {
        const float w = !either || a[k] > 0 || b[k] > 0 ? 1.0f : 0.0f;
        slope[k] = w * (by_a * a[k] + by_b * b[k] + constant);
    }
}

/* The means of a, b, a a, b b and a b over `samples` images, (5, I, J, K). */
void moments(
    const float *a, const float *b, index_t samples, index_t voxels, index_t plane, float *out, index_t first,
    index_t last
) {
    const float share = 1.0f / (float)samples;
    for (index_t k = first * plane; k < last * plane; k++) {
        float a_ = 0, b_ = 0, aa = 0, bb = 0, ab = 0;
        for (index_t s = 0; s < samples; s++) {
            const float p = a[s * voxels + k], q = b[s * voxels + k];
            a_ += p, b_ += q, aa += p * p, bb += q * q, ab += p * q;
        }
        const float parts[5] = {a_, b_, aa, bb, ab};
        for (int n = 0; n < 5; n++) out[n * voxels + k] = share * parts[n];
    }
}

/* The slope by b of what has the slopes (3, I, J, K) by the means of b, b b and a b, times `factor`. */
void moments_slope(
    const float *a, const float *b, index_t samples, index_t voxels, index_t plane, const float *slopes, float factor,
    float *out, index_t first, index_t last
) {
    const float share = factor / (float)samples;
    for (index_t s = 0; s < samples; s++)
        for (index_t k = first * plane; k < last * plane; k++)
            out[s * voxels + k] = share * (slopes[k] + 2 * b[s * voxels + k] * slopes[voxels + k]
                                           + a[s * voxels + k] * slopes[2 * voxels + k]);
}

/* Weigh the neighbours along rows and columns of planes (J, K), as far as `reach` to either side, by their distance.
 * Beyond the border is nothing, or what is there, repeated. */
void filter_in_planes(
    const float *in, const index_t *size, const index_t *reach, const float *weights, index_t repeat, float *out,
    index_t first, index_t last
) {
    const index_t rows = size[1], count = size[2];
    float padded[3 * MOST_ROW];
    float *line = padded + MOST_ROW;
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < rows; j++) {
            const float *plane = in + i * rows * count;
            float *row = out + (i * rows + j) * count;
            for (index_t k = 0; k < count; k++) line[k] = 0;
            for (index_t shift = -reach[1]; shift <= reach[1]; shift++) {
                const index_t at = j + shift, inside = at < 0 ? 0 : at < rows ? at : rows - 1;
                const float weight = weights[shift < 0 ? -shift : shift];
                if (at == inside || repeat)
                    for (index_t k = 0; k < count; k++) line[k] += weight * plane[inside * count + k];
            }
            for (index_t k = 1; k <= reach[2]; k++) {
                line[-k] = repeat ? line[0] : 0;
                line[count + k - 1] = repeat ? line[count - 1] : 0;
            }
            for (index_t k = 0; k < count; k++) row[k] = weights[0] * line[k];
            for (index_t shift = 1; shift <= reach[2]; shift++)
                for (index_t k = 0; k < count; k++) row[k] += weights[shift] * (line[k - shift] + line[k + shift]);
        }
}

/* The same across planes of images (M, I, J, K), whose planes are counted through. */
void filter_across_planes(
    const float *in, const index_t *size, const index_t *reach, const float *weights, index_t repeat, float *out,
    index_t first, index_t last
) {
    const index_t plane = size[1] * size[2];
    for (index_t i = first; i < last; i++) {
        const index_t within = i % size[0], image = i - within;
        float *to = out + i * plane;
        for (index_t k = 0; k < plane; k++) to[k] = 0;
        for (index_t shift = -reach[0]; shift <= reach[0]; shift++) {
            const index_t at = within + shift, inside = at < 0 ? 0 : at < size[0] ? at : size[0] - 1;
            const float weight = weights[shift < 0 ? -shift : shift], *from = in + (image + inside) * plane;
            if (at == inside || repeat)
                for (index_t k = 0; k < plane; k++) to[k] += weight * from[k];
        }
    }
}

INLINE float count_neighbours(index_t at, index_t size, index_t reach) {
    const index_t low = at > reach ? at - reach : 0, high = at + reach < size ? at + reach : size - 1;
    return (float)(high - low + 1);
}

/* Add up the squared correlation in windows, from the windows' sums of `moments`; its slopes by those of b, b b, a b. */
double correlate(
    const float *sums, const index_t *size, const index_t *reach, float flat, float *slopes, index_t first, index_t last
) {
    const index_t n = size[0] * size[1] * size[2];
    float inverse[MOST_ROW];
    double total = 0;
    for (index_t k = 0; k < size[2]; k++) inverse[k] = 1 / count_neighbours(k, size[2], reach[2]);
    for (index_t i = first; i < last; i++)
        for (index_t j = 0; j < size[1]; j++) {
            const float share = 1 / (count_neighbours(i, size[0], reach[0]) * count_neighbours(j, size[1], reach[1]));
            const index_t row = (i * size[1] + j) * size[2];
            const float *p = sums + row;
            float *slope = slopes + row, sum = 0;
            for (index_t k = 0; k < size[2]; k++) {
                const float s = share * inverse[k], a = s * p[k], b = s * p[n + k];
                const float var_a_ = s * p[2 * n + k] - a * a, var_b_ = s * p[3 * n + k] - b * b;
                const float var_a = var_a_ > 0 ? var_a_ : 0, var_b = var_b_ > 0 ? var_b_ : 0;
                const float covariance = s * p[4 * n + k] - a * b, below = 1 / (var_a * var_b + flat);
                const float by_covariance = 2 * covariance * below, score = covariance * covariance * below;
                const float by_variance = var_b_ >= 0 ? -score * var_a * below : 0;
                sum += score;
                slope[k] = s * (-a * by_covariance - 2 * b * by_variance);
                slope[n + k] = s * by_variance;
                slope[2 * n + k] = s * by_covariance;
            }
            total += sum;
        }
    return total;
}
