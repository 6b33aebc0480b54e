/* Random numbers as Python's `random` gives them: Matsumoto and Nishimura, "Mersenne Twister", 1998, for the generator
 * and init_by_array; FIPS 180-4 for the SHA-512 with which Python seeds from a text. */
#include "random.h"

#include <stdio.h>
#include <string.h>

static void init_by_array(Random *r, const uint32_t *key, int size) {
    uint32_t *s = r->state;
    s[0] = 19650218u;
    for (int i = 1; i < 624; i++) s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + (uint32_t)i;
    int i = 1, j = 0;
    for (int k = size > 624 ? size : 624; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + (uint32_t)j;
        if (++i == 624) s[0] = s[623], i = 1;
        j = (j + 1) % size;
    }
    for (int k = 623; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - (uint32_t)i;
        if (++i == 624) s[0] = s[623], i = 1;
    }
    s[0] = 0x80000000u;
    r->index = 624;
}

static uint32_t next_word(Random *r) {
    uint32_t *s = r->state, y;
    if (r->index == 624) {
        for (int k = 0; k < 624; k++) {
            y = (s[k] & 0x80000000u) | (s[(k + 1) % 624] & 0x7fffffffu);
            s[k] = s[(k + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        r->index = 0;
    }
    y = s[r->index++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

void seed_random(Random *random, uint32_t seed) { init_by_array(random, &seed, 1); }

double next_random(Random *random) {
    uint32_t a = next_word(random) >> 5, b = next_word(random) >> 6;
    return (a * 67108864.0 + b) * (1.0 / 9007199254740992.0);
}

static uint64_t turn(uint64_t x, int n) { return x >> n | x << (64 - n); }

/* The first 64 bits of the fractional parts of the cube roots of the first 80 primes. */
static const uint64_t ROUND[80] = {
    0x428a2f98d728ae22u, 0x7137449123ef65cdu, 0xb5c0fbcfec4d3b2fu, 0xe9b5dba58189dbbcu,
    0x3956c25bf348b538u, 0x59f111f1b605d019u, 0x923f82a4af194f9bu, 0xab1c5ed5da6d8118u,
    0xd807aa98a3030242u, 0x12835b0145706fbeu, 0x243185be4ee4b28cu, 0x550c7dc3d5ffb4e2u,
    0x72be5d74f27b896fu, 0x80deb1fe3b1696b1u, 0x9bdc06a725c71235u, 0xc19bf174cf692694u,
    0xe49b69c19ef14ad2u, 0xefbe4786384f25e3u, 0x0fc19dc68b8cd5b5u, 0x240ca1cc77ac9c65u,
    0x2de92c6f592b0275u, 0x4a7484aa6ea6e483u, 0x5cb0a9dcbd41fbd4u, 0x76f988da831153b5u,
    0x983e5152ee66dfabu, 0xa831c66d2db43210u, 0xb00327c898fb213fu, 0xbf597fc7beef0ee4u,
    0xc6e00bf33da88fc2u, 0xd5a79147930aa725u, 0x06ca6351e003826fu, 0x142929670a0e6e70u,
    0x27b70a8546d22ffcu, 0x2e1b21385c26c926u, 0x4d2c6dfc5ac42aedu, 0x53380d139d95b3dfu,
    0x650a73548baf63deu, 0x766a0abb3c77b2a8u, 0x81c2c92e47edaee6u, 0x92722c851482353bu,
    0xa2bfe8a14cf10364u, 0xa81a664bbc423001u, 0xc24b8b70d0f89791u, 0xc76c51a30654be30u,
    0xd192e819d6ef5218u, 0xd69906245565a910u, 0xf40e35855771202au, 0x106aa07032bbd1b8u,
    0x19a4c116b8d2d0c8u, 0x1e376c085141ab53u, 0x2748774cdf8eeb99u, 0x34b0bcb5e19b48a8u,
    0x391c0cb3c5c95a63u, 0x4ed8aa4ae3418acbu, 0x5b9cca4f7763e373u, 0x682e6ff3d6b2b8a3u,
    0x748f82ee5defb2fcu, 0x78a5636f43172f60u, 0x84c87814a1f0ab72u, 0x8cc702081a6439ecu,
    0x90befffa23631e28u, 0xa4506cebde82bde9u, 0xbef9a3f7b2c67915u, 0xc67178f2e372532bu,
    0xca273eceea26619cu, 0xd186b8c721c0c207u, 0xeada7dd6cde0eb1eu, 0xf57d4f7fee6ed178u,
    0x06f067aa72176fbau, 0x0a637dc5a2c898a6u, 0x113f9804bef90daeu, 0x1b710b35131c471bu,
    0x28db77f523047d84u, 0x32caab7b40c72493u, 0x3c9ebe0a15c9bebcu, 0x431d67c49c100d4cu,
    0x4cc5d4becb3e42b6u, 0x597f299cfc657e2au, 0x5fcb6fab3ad6faecu, 0x6c44198c4a475817u,
};

/* SHA-512 of a text of fewer than 112 bytes, in one block. */
static void sha512(const uint8_t *text, int size, uint8_t digest[64]) {
    uint64_t hash[8] = {0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
                        0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u};
    uint8_t block[128] = {0};
    uint64_t w[80], v[8];
    memcpy(block, text, (size_t)size);
    block[size] = 0x80;
    block[126] = (uint8_t)(size * 8 >> 8);
    block[127] = (uint8_t)(size * 8);
    for (int t = 0; t < 16; t++) {
        w[t] = 0;
        for (int i = 0; i < 8; i++) w[t] = w[t] << 8 | block[8 * t + i];
    }
    for (int t = 16; t < 80; t++)
        w[t] = w[t - 16] + (turn(w[t - 15], 1) ^ turn(w[t - 15], 8) ^ w[t - 15] >> 7) + w[t - 7] +
               (turn(w[t - 2], 19) ^ turn(w[t - 2], 61) ^ w[t - 2] >> 6);
    memcpy(v, hash, sizeof v);
    for (int t = 0; t < 80; t++) {
        uint64_t one = v[7] + (turn(v[4], 14) ^ turn(v[4], 18) ^ turn(v[4], 41)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) +
                       ROUND[t] + w[t];
        uint64_t two = (turn(v[0], 28) ^ turn(v[0], 34) ^ turn(v[0], 39)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 64; i++) digest[i] = (uint8_t)((hash[i / 8] + v[i / 8]) >> (56 - 8 * (i % 8)));
}

/* random.Random(f"{seed}/{number}").randrange(2**31 - 1) */
uint32_t candidate_seed(uint32_t seed, int32_t number) {
    uint8_t text[96];
    uint32_t key[24], value;
    int size = snprintf((char *)text, 32, "%u/%d", seed, number);
    sha512(text, size, text + size); /* Python appends the digest and takes the bytes as one big-endian number */
    size += 64;
    int words = (size + 3) / 4;
    memset(key, 0, sizeof key);
    for (int i = 0; i < size; i++) key[i / 4] |= (uint32_t)text[size - 1 - i] << (8 * (i % 4));
    Random random;
    init_by_array(&random, key, words);
    do value = next_word(&random) >> 1;
    while (value >= 0x7fffffffu);
    return value;
}
